"""Frames of a video that have the same pixels pass through vision tower and projector once (`tango.prune`, `reuse`).

Processors find them on the host, in uint8, and say so in the input `video_first_equal`, whose integers stay there; for
Qwen-VL they are temporal steps. Adapters encode the distinct ones; then all frames get their rows, and methods see all
tokens. Inputs without it are encoded frame by frame. Whether the pixels were changed since is checked, and read from
the device with the rest.

Features are equal up to rounding, not bit for bit: a matrix product may round differently for another number of rows.
In SigLIP-SO400M's shapes on a CPU (torch 2.15, AVX2) the states of two blocks were the same bits in bfloat16, and in
float32 on one thread; on two threads they differed by up to 1e-6. There, equal frames of one batch differed, too.
While the tower is compiled all frames are encoded, since another number would compile it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from tango.annotations import Bool
from tango.models.calls import Inputs
from tango.video.repeats import FIRST_EQUAL


class Distinct(NamedTuple):
    """The distinct frames of a batch of videos, which are the ones to encode."""

    frames: list[int]  # their numbers, counted on from video to video
    counts: list[int]  # how many of them belong to each video
    rows: list[list[int]]  # for every frame of each video, its row among the distinct ones of that video

    @property
    def flat_rows(self) -> list[int]:
        """For every frame of all videos, its row among all distinct ones."""
        starts = accumulate(self.counts, initial=0)
        return [start + row for start, own in zip(starts, self.rows, strict=False) for row in own]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reuse:
    """How many frames of each video passed through the tower, and whether those they stood for were the same.

    Example:
        >>> Reuse(encoded=(1,), equal=torch.tensor(True)).encoded
        (1,)
    """

    encoded: tuple[int, ...]
    equal: Bool[Tensor, ""]  # on the device of the pixels; to be read with the rest


def distinct_frames(inputs: Inputs, lengths: Sequence[int]) -> Distinct:
    """Distinct frames, given each video's number of frames. Inputs that do not say count as all distinct.

    Raises:
        ValueError: what the inputs say does not fit the videos.
    Example:
        >>> distinct_frames({"video_first_equal": [[0, 0, 2], [0, 0]]}, [3, 2])
        Distinct(frames=[0, 2, 3], counts=[2, 1], rows=[[0, 0, 1], [0, 0]])
    """
    given = inputs.get(FIRST_EQUAL)
    first = [list(range(length)) for length in lengths] if given is None else [[int(f) for f in own] for own in given]
    fits = [len(own) for own in first] == list(lengths) and all(
        0 <= f <= t and own[f] == f for own in first for t, f in enumerate(own)
    )
    if not fits:
        raise ValueError(
            f"{FIRST_EQUAL} must hold, for each video of {list(lengths)} frames or temporal steps, the number of the "
            f"first one equal to each; got lengths {[len(own) for own in first]}. Leave it out where pixels changed"
        )
    kept = [[t for t, f in enumerate(own) if f == t] for own in first]
    ranks = [{t: row for row, t in enumerate(own)} for own in kept]
    starts = accumulate(lengths, initial=0)
    return Distinct(
        frames=[start + t for start, own in zip(starts, kept, strict=False) for t in own],
        counts=[len(own) for own in kept],
        rows=[[rank[f] for f in own] for rank, own in zip(ranks, first, strict=True)],
    )


def refuse_unequal(equal: object) -> None:
    """Raise ValueError unless frames that were encoded once had the same pixels."""
    if not equal:
        raise ValueError(
            f"{FIRST_EQUAL} calls frames equal whose pixels differ; leave it out where pixels were changed after the "
            "processor, or prune without reuse"
        )


def reuse_of(distinct: Distinct, pixels: Sequence[Tensor]) -> Reuse | None:
    """Describe the reuse, given the pixels of all frames; None: all are distinct. Nothing waits for the device."""
    if len(distinct.frames) == len(pixels):
        return None
    encoded = [distinct.frames[row] for row in distinct.flat_rows]  # for every frame, the one that is encoded
    pairs = [(pixels[t], pixels[f]) for t, f in enumerate(encoded) if f != t]
    equal = torch.stack([(a == b).all() for a, b in pairs]).all()
    return Reuse(encoded=tuple(distinct.counts), equal=equal)
