"""Dividing a segment's budget into salient tokens of each frame and anchors, which only some frames have.

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
    """Mark the frames whose similarity to the next one in their segment is below `threshold` (None: all frames).

    The last frame of a segment is always marked.

    Args:
        similarity: similarity of every frame but the last to the next.
        lengths: frames per segment.
    """
    ends = {end - 1 for end in accumulate(lengths)}
    return [t in ends or threshold is None or similarity[t] < threshold for t in range(sum(lengths))]


def equal_counts(per_frame: int, context_ratio: float, N: int, length: int, stride: int) -> Counts:
    """Give every frame of a segment the same count of salient tokens, and the anchors to anchor frames alone.

    Anchors that do not divide evenly among those, or have no room in them, are lost.

    Source: FastVID's release for LLaVA-OneVision (arXiv:2503.11187).
    """
    context = int(per_frame * context_ratio)
    is_anchor = every_nth([True] * length, stride)
    num_anchors = min(context * length // sum(is_anchor), N - per_frame + context)
    return [(per_frame - context, num_anchors * here) for here in is_anchor]


def divided_counts(
    total: int, context_ratio: float, N: int, is_open: Sequence[bool], stride: int, *, min_anchors: int = 0,
    max_anchors: int,
) -> Counts:  # fmt: skip
    """Divide a segment's `total`: salient tokens among its open frames, anchors among its anchor frames.

    What does not divide evenly goes to the earlier open frames and to the later anchor frames. What exceeds
    `max_anchors` is lost; where anchors and salient tokens exceed a frame's room, the salient ones are fewer.

    Args:
        min_anchors: of the segment.
        max_anchors: of one frame.
    Source: FastVID's releases for LLaVA-Video and Qwen2.5-VL (arXiv:2503.11187); the latter has at least one anchor in
    a segment, and in a frame at most half of its tokens.
    """

    def divide(count: int, among: Sequence[bool], most: int) -> list[int]:
        return apportion(min(count, most * sum(among)), [most * here for here in among])

    context = max(min_anchors, int(total * context_ratio))
    salient = divide(total - context, is_open, N)
    anchors = divide(context, every_nth(is_open, stride)[::-1], max_anchors)[::-1]
    return [(min(count, N - num), num) for count, num in zip(salient, anchors, strict=True)]


def exact_counts(total: int, context_ratio: float, N: int, is_open: Sequence[bool], stride: int) -> Counts:
    """Like `divided_counts`, but exactly `total` tokens; if the open frames cannot hold them, all frames are open.

    Anchors that find no room in anchor frames become salient tokens.

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
