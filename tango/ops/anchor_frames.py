"""Sharing out a segment's budget between the tokens that its frames keep and anchors, which lie in some of them.

Host arithmetic only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from tango.ops.budget import apportion

Counts = list[tuple[int, int]]  # salient tokens and anchors of each frame


def every_nth(is_open: Sequence[bool], stride: int) -> list[bool]:
    """Mark every `stride`-th of the open frames, counted back from the last."""
    marked, rank = [], 0
    for open_ in reversed(is_open):
        marked.append(open_ and rank % stride == 0)
        rank += open_
    return marked[::-1]


def equal_counts(per_frame: int, context: int, N: int, is_anchor: Sequence[bool]) -> Counts:
    """The same for every frame, the anchors' part then divided among anchor frames. What does not divide is lost.

    Args:
        per_frame: tokens per frame, `context` of them for anchors.
    Source: FastVID's release for LLaVA-OneVision.
    """
    num_anchors = min(context * len(is_anchor) // sum(is_anchor), N - per_frame + context)
    return [(per_frame - context, num_anchors * here) for here in is_anchor]


def divided_counts(
    total: int, context: int, N: int, is_open: Sequence[bool], is_anchor: Sequence[bool], *, max_anchors: int
) -> Counts:
    """A segment's `total` divided among its open frames, and `context` of it among its anchor frames.

    What does not divide goes to the earlier frames; what a frame has no room for, or exceeds `max_anchors`, is lost.

    Source: FastVID's releases for LLaVA-Video and Qwen2.5-VL.
    """

    def divide(count: int, among: Sequence[bool], most: int) -> list[int]:
        return apportion(min(count, most * sum(among)), [most * here for here in among])

    salient, anchors = divide(total - context, is_open, N), divide(context, is_anchor, max_anchors)
    return [(count, min(num, N - count)) for count, num in zip(salient, anchors, strict=True)]


def exact_counts(total: int, context: int, N: int, is_open: Sequence[bool], is_anchor: Sequence[bool]) -> Counts:
    """Like `divided_counts`, but `total` tokens in all: of anchors up to `context`, as many as find room.

    Raises:
        BudgetError: `total` exceeds what the open frames hold.
    """

    def spread(num_anchors: int) -> tuple[list[int], list[int]]:
        salient = apportion(total - num_anchors, [N * here for here in is_open])
        return salient, [(N - count) * here for count, here in zip(salient, is_anchor, strict=True)]

    num_anchors = bisect_right(range(context + 1), False, key=lambda num: sum(spread(num)[1]) < num) - 1
    salient, room = spread(num_anchors)
    return list(zip(salient, apportion(num_anchors, room), strict=True))
