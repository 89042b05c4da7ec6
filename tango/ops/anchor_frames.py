"""Sharing out a segment's budget between the tokens that its frames keep and anchors, which lie in some of them.

Host arithmetic only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from tango.ops.budget import apportion

Counts = list[tuple[int, int]]  # salient tokens and anchors of each frame


def every_nth(is_open: Sequence[bool], stride: int) -> list[bool]:
    """Mark every `stride`-th of the open frames, counted back from the last."""
    marked, rank = [], 0
    for open_ in reversed(is_open):
        marked.append(open_ and rank % stride == 0)
        rank += open_
    return marked[::-1]


def last_of_runs(similarity: Sequence[float], lengths: Sequence[int], threshold: float | None) -> list[bool]:
    """Mark every frame but those that the next one in their segment resembles by at least `threshold` (None: all).

    Args:
        similarity: of every frame but the last to the next.
        lengths: frames per segment.
    """
    ends = {end - 1 for end in accumulate(lengths)}
    return [t in ends or threshold is None or similarity[t] < threshold for t in range(sum(lengths))]


def equal_counts(per_frame: int, context_ratio: float, N: int, length: int, stride: int) -> Counts:
    """The same for each of a segment's frames; what is meant for anchors then goes to anchor frames alone.

    What does not divide among these, or finds no room in them, is lost.

    Source: FastVID's release for LLaVA-OneVision (arXiv:2503.11187).
    """
    context = int(per_frame * context_ratio)
    is_anchor = every_nth([True] * length, stride)
    num_anchors = min(context * length // sum(is_anchor), N - per_frame + context)
    return [(per_frame - context, num_anchors * here) for here in is_anchor]


def divided_counts(
    total: int, context_ratio: float, N: int, is_open: Sequence[bool], stride: int, *, max_anchors: int
) -> Counts:
    """A segment's `total` divided among its open frames, and what is meant for anchors among anchor frames.

    What does not divide goes to the earlier frames; what a frame has no room for, or exceeds `max_anchors`, is lost.

    Source: FastVID's releases for LLaVA-Video and Qwen2.5-VL (arXiv:2503.11187).
    """

    def divide(count: int, among: Sequence[bool], most: int) -> list[int]:
        return apportion(min(count, most * sum(among)), [most * here for here in among])

    context = int(total * context_ratio)
    salient, anchors = divide(total - context, is_open, N), divide(context, every_nth(is_open, stride), max_anchors)
    return [(count, min(num, N - count)) for count, num in zip(salient, anchors, strict=True)]


def exact_counts(total: int, context_ratio: float, N: int, is_open: Sequence[bool], stride: int) -> Counts:
    """Like `divided_counts`, but `total` tokens in all; if the open frames do not hold them, all frames are open.

    As many of what is meant for anchors become anchors as find room in anchor frames, the others salient tokens.

    Raises:
        BudgetError: the segment has fewer tokens than `total`.
    """
    is_open = is_open if total <= N * sum(is_open) else [True] * len(is_open)
    is_anchor = every_nth(is_open, stride)

    def spread(num_anchors: int) -> tuple[list[int], list[int]]:
        salient = apportion(total - num_anchors, [N * here for here in is_open])
        return salient, [(N - count) * here for count, here in zip(salient, is_anchor, strict=True)]

    context = int(total * context_ratio)
    num_anchors = bisect_right(range(context + 1), False, key=lambda num: sum(spread(num)[1]) < num) - 1
    salient, room = spread(num_anchors)
    return list(zip(salient, apportion(num_anchors, room), strict=True))
