"""Splitting a segmented video into groups of tokens that compete for the budget. Host arithmetic only.

Groups are laid out as rows, one for every competing token, and processed in batches. On a GPU, which wants few
launches, a batch is all there is; on a CPU it is what stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Group(NamedTuple):
    """Tokens that compete with each other: those at the same positions of some frames."""

    frames: list[int]
    positions: NDArray[np.int64]
    num_salient: int  # per frame
    num_context: int  # per frame; over all frames if `joint`
    joint: bool = False  # context tokens are clustered over all frames together
    span: int = 1  # for static tokens: the one frame listed stands for the mean of this many frames


def competing_groups(
    lengths: Sequence[int],
    static: Sequence[NDArray[np.bool_]],
    budgets: Sequence[tuple[int, int]],
    context_ratio: float,
) -> Iterator[Group]:
    """Yield the groups with their budgets: static tokens of a segment, its other tokens, single frames of equal budget.

    Args:
        lengths: frames per segment.
        static: which positions of each segment are averaged over its frames, (N,).
        budgets: tokens to keep of each segment: static ones, others in all its frames.
        context_ratio: share of a budget that goes to merged tokens.
    """
    N = len(static[0])

    def split(num_tokens: int) -> tuple[int, int]:
        salient = int(num_tokens * (1.0 - context_ratio))
        return salient, num_tokens - salient

    singles: dict[int, list[int]] = {}
    start = 0
    for length, positions, (num_static, num_dynamic) in zip(lengths, static, budgets, strict=True):
        if length == 1:
            singles.setdefault(num_dynamic, []).append(start)
        elif num_static:
            yield Group([start], np.flatnonzero(positions), *split(num_static), span=length)
        if length > 1 and num_dynamic:
            salient, _ = split(num_dynamic // length)
            frames = list(range(start, start + length))
            yield Group(frames, np.flatnonzero(~positions), salient, num_dynamic - length * salient, joint=True)
        start += length
    for num_tokens, frames in singles.items():
        if num_tokens:
            yield Group(frames, np.arange(N), *split(num_tokens))


class Batch(NamedTuple):
    """Rows, one for every competing token, that are reduced together.

    They are laid out frame by frame, group by group. Each frame of a group is a run of rows, of which some are salient.
    The other rows of the run, or of all runs of a joint group together, are a set that is clustered.
    """

    rows: slice  # among the rows of all batches
    frame_sizes: NDArray[np.int64]  # rows of each run
    num_salient: NDArray[np.int64]  # to be kept of each run
    set_sizes: NDArray[np.int64]  # rows of each set, without the salient ones
    num_context: NDArray[np.int64]  # to be kept of each set


class Layout(NamedTuple):
    """Which token each row is, and which row each token belongs to."""

    tokens: NDArray[np.int64]  # flat index of each row's token; for an averaged one that in its first frame
    spans: NDArray[np.int64]  # number of frames that each row is the average of
    members: NDArray[np.int64]  # row after row, the flat indices of all tokens that the row is the average of
    rows: NDArray[np.int64]  # row of each token of the video; the number of rows if nothing of its group is kept
    batches: list[Batch]
    num_averaged: int  # tokens, in all frames, that the kept rows are averages of

    @property
    def largest_batch(self) -> int:
        """Rows of the largest batch."""
        return max(batch.rows.stop - batch.rows.start for batch in self.batches)


def arrange(groups: Iterable[Group], num_frames: int, num_positions: int, *, max_rows: int) -> Layout:
    """Give every competing token a row, and divide the rows into batches of at most `max_rows` where groups allow."""
    batches, tokens, spans, members, num_rows, num_averaged = [], [], [], [], 0, 0
    row_of = np.full(num_frames * num_positions, -1)
    for batch in _in_batches(groups, max_rows):
        start, columns = num_rows, []
        for frames, positions, salient, context, joint, span in batch:
            num, size = len(frames), len(positions)
            token = (np.asarray(frames)[:, None] * num_positions + positions).ravel()
            over_frames = token[:, None] + np.arange(span) * num_positions
            row_of[over_frames] = np.arange(num_rows, num_rows + len(token))[:, None]
            members.append(over_frames.ravel())
            tokens.append(token)
            spans.append(np.full(len(token), span))
            num_rows += len(token)
            sets = 1 if joint else num
            left = num * (size - salient) // sets
            columns.append([[size] * num, [salient] * num, [left] * sets, [context] * sets])
            num_averaged += span * (num * salient + sets * context)
        batches.append(
            Batch(slice(start, num_rows), *(np.concatenate(column) for column in zip(*columns, strict=True)))
        )
    row_of[row_of < 0] = num_rows
    joined = np.concatenate
    return Layout(joined(tokens), joined(spans), joined(members), row_of, batches, num_averaged)


def _in_batches(groups: Iterable[Group], max_rows: int) -> Iterator[list[Group]]:
    """Gather groups into batches; a group whose frames are independent may be divided between several."""

    def parts() -> Iterator[tuple[Group, int]]:
        for group in groups:
            size = len(group.positions)
            turn = len(group.frames) if group.joint else max(1, max_rows // size)
            for start in range(0, len(group.frames), turn):
                part = group._replace(frames=group.frames[start : start + turn])
                yield part, len(part.frames) * size

    return in_turns(parts(), max_rows)


def in_turns(items: Iterable[tuple[T, int]], most: int) -> Iterator[list[T]]:
    """Group items, given with their sizes, in order: as many together as `most` allows; a larger item is alone."""
    turn: list[T] = []
    room = most
    for item, size in items:
        if turn and size > room:
            yield turn
            turn, room = [], most
        turn.append(item)
        room -= size
    if turn:
        yield turn
