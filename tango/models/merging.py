"""Runs a tower in which frames are merged between blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tango.annotations import Float
from tango.containers import TowerFrames


class Merger(Protocol):
    """A tower method, as `tango.methods.base.TowerMerger`."""

    @property
    def name(self) -> str:
        """The method's name."""

    @property
    def after(self) -> tuple[int, ...]:
        """Numbers of the blocks after which frames are merged, increasing, from 0."""

    def __call__(self, frames: TowerFrames) -> TowerFrames:
        """Merge frames."""

    def groups(self, hidden: Tensor) -> tuple[int, ...]:
        """Lengths of runs of similar frames."""


@dataclass(frozen=True, kw_only=True)
class MergedFrames:
    """Which frames of a video are left after the tower.

    Example:
        >>> MergedFrames(num_frames=5, sources=(0, 1, 4)).rows
        [0, 1, 1, 1, 2]
    """

    num_frames: int
    sources: tuple[int, ...]  # of every frame that is left, the one that it stands for

    @property
    def rows(self) -> list[int]:
        """For every frame of the video, the frame that is left and stands at its place, or before."""
        return [bisect_right(self.sources, t) - 1 for t in range(self.num_frames)]


def merged_states(
    hidden: Float[Tensor, "T p P"],
    merger: Merger,
    run: Callable[[Tensor, int, int], Tensor],
    last: int,
) -> TowerFrames:
    """States of the frames that are left, at the input of block `last`.

    Args:
        hidden: states at the input of the first block.
        run: states, first and end of a range of blocks -> states after these blocks; in batches of frames.
    """
    frames, done = TowerFrames(hidden=hidden, sources=tuple(range(len(hidden)))), 0
    for block in merger.after:
        states = run(frames.hidden, done, block + 1)
        frames, done = merger(TowerFrames(hidden=states, sources=frames.sources)), block + 1
    groups = merger.groups(frames.hidden)
    return TowerFrames(hidden=run(frames.hidden, done, last), sources=frames.sources, groups=groups)


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """One tensor; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
