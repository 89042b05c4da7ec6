"""Splitting a segmented video into groups of tokens that compete for places in the budget. Host arithmetic only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tango.ops.budget import exact_count, exact_segment_budgets, segment_budgets


class Group(NamedTuple):
    """Tokens that compete with each other: the same places in some frames."""

    frames: list[int]
    places: NDArray[np.int64]
    num_salient: int  # per frame
    num_context: int  # per frame; over all frames if `joint`
    joint: bool = False  # context tokens are clustered over all frames together
    span: int = 1  # of static tokens: the one frame listed stands for the mean of this many

    @property
    def covered(self) -> list[int]:
        """All frames whose tokens the group takes in."""
        return list(range(self.frames[0], self.frames[0] + self.span)) if self.span > 1 else self.frames


def static_places(lengths: Sequence[int], static: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Of every segment the places that do not change between any two adjacent frames of it, (N,); none in one frame.

    Args:
        lengths: frames per segment.
        static: what does not change from each frame to the next, (T - 1, N).
    """
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    return [
        np.logical_and(static[start : start + length - 1].all(axis=0), length > 1)
        for start, length in zip(starts, lengths, strict=True)
    ]


def competing_groups(
    lengths: Sequence[int],
    static: Sequence[NDArray[np.bool_]],
    retention_ratio: float,
    context_ratio: float,
    *,
    exact: bool,
    blocks_of: Callable[[int], Iterable[slice]],
) -> Iterator[Group]:
    """Give every group its budget: a segment's static tokens, its others, and single frames with equal budgets.

    Args:
        static: places of each segment that are averaged over its frames, (N,).
        context_ratio: share of merged tokens in a budget.
        exact: keep exactly round(retention_ratio * T * N) tokens, averaging none where that would leave too few.
        blocks_of: how many single frames, in turns, make a group.
    """
    N, T = len(static[0]), sum(lengths)
    left = T * N - sum((length - 1) * int(places.sum()) for length, places in zip(lengths, static, strict=True))
    if exact and left < exact_count(T * N, retention_ratio):
        static = [np.zeros(N, bool)] * len(lengths)
    budgets = exact_segment_budgets if exact else segment_budgets
    counts = budgets(lengths, [int(places.sum()) for places in static], N, retention_ratio)

    def split(num_tokens: int) -> tuple[int, int]:
        salient = int(num_tokens * (1.0 - context_ratio))
        return salient, num_tokens - salient

    singles: dict[int, list[int]] = {}
    start = 0
    for length, places, (num_static, num_dynamic) in zip(lengths, static, counts, strict=True):
        if length == 1:
            singles.setdefault(num_dynamic, []).append(start)
        elif num_static:
            yield Group([start], np.flatnonzero(places), *split(num_static), span=length)
        if length > 1 and num_dynamic:
            salient, _ = split(num_dynamic // length)
            frames = list(range(start, start + length))
            yield Group(frames, np.flatnonzero(~places), salient, num_dynamic - length * salient, joint=True)
        start += length
    for num_tokens, frames in singles.items():
        for block in blocks_of(len(frames) if num_tokens else 0):
            yield Group(frames[block], np.arange(N), *split(num_tokens))
