"""Turning a retention ratio into token counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tango.errors import BudgetError

ROUNDING_ERROR = 1e-6  # more than that of a ratio times a number of tokens


def exact_count(num_tokens: int, retention_ratio: float) -> int:
    """round(retention_ratio * num_tokens), at least 1. It depends on shapes alone."""
    return max(1, round(retention_ratio * num_tokens))


def ceil_count(num_tokens: int, retention_ratio: float) -> int:
    """ceil(retention_ratio * num_tokens), at least 1 and at most all; 0 for an empty set."""
    return min(num_tokens, max(1, math.ceil(num_tokens * retention_ratio))) if num_tokens else 0


def ceil_product(num_tokens: int, ratio: float) -> int:
    """ceil(ratio * num_tokens), where a product just above a whole number counts as that number.

    A ratio that was solved from a mean is off by a rounding error, which a plain ceil would make a whole token.
    """
    return math.ceil(ratio * num_tokens - ROUNDING_ERROR)


def floor_count(num_tokens: int, retention_ratio: float) -> int:
    """floor(retention_ratio * num_tokens), at least 1. A product just below a whole number counts as that number."""
    return max(1, math.floor(num_tokens * retention_ratio + ROUNDING_ERROR))


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Split `total` tokens over groups in proportion to their sizes, never more than a group's size.

    Largest remainders are rounded up; ties go to the earlier group.

    Raises:
        BudgetError: `total` exceeds the sum of the sizes.
    """
    available = sum(sizes)
    if not 0 <= total <= available:
        raise BudgetError(f"cannot take {total} tokens from groups of {available} in all")
    if available == 0:
        return [0] * len(sizes)
    shares = [total * size // available for size in sizes]
    remainders = [-(total * size % available) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=remainders.__getitem__)
    for group in by_remainder[: total - sum(shares)]:
        shares[group] += 1
    return shares


def segment_budgets(
    lengths: Sequence[int], num_static: Sequence[int], tokens_per_frame: int, retention_ratio: float
) -> list[tuple[int, int]]:
    """Tokens to keep of each segment: (static, dynamic), where dynamic is the sum over its frames.

    A segment's static tokens count once, and its ratio grows so that the segment as a whole still keeps
    `retention_ratio` of its tokens. Counts are rounded up, per frame for dynamic tokens.

    Source: the Tango release (the paper does not describe it).
    """
    budgets = []
    for length, static in zip(lengths, num_static, strict=True):
        total = length * tokens_per_frame
        ratio = min(retention_ratio / ((total - (length - 1) * static) / total), 1.0)
        dynamic = ceil_count(tokens_per_frame - static, ratio)
        budgets.append((ceil_count(static, ratio), length * dynamic))
    return budgets


def exact_segment_budgets(
    lengths: Sequence[int], num_static: Sequence[int], tokens_per_frame: int, retention_ratio: float
) -> list[tuple[int, int]]:
    """Like `segment_budgets`, but the counts add up to `exact_count` of the whole video.

    Raises:
        BudgetError: merging this many static tokens leaves too few; merge fewer.
    """
    sizes = []
    for length, static in zip(lengths, num_static, strict=True):
        sizes += [static, length * (tokens_per_frame - static)]
    counts = apportion(exact_count(sum(lengths) * tokens_per_frame, retention_ratio), sizes)
    return list(zip(counts[::2], counts[1::2], strict=True))


def round_to_total(shares: Sequence[float], total: int, capacity: int) -> list[int]:
    """Round shares to whole numbers that add up to `total`, each at most `capacity`.

    Every share gets at least 1 unless there are more shares than `total`. What rounding leaves over or lacks is added
    to, or taken from, the share that is furthest off; ties go to the earlier one.

    Raises:
        BudgetError: `total` exceeds the capacity of all.
    """
    if not 0 <= total <= len(shares) * capacity:
        raise BudgetError(f"cannot take {total} tokens from {len(shares)} groups of {capacity}")
    least = min(1, capacity) if total >= len(shares) else 0
    counts = [min(capacity, max(least, round(share))) for share in shares]
    while (rest := total - sum(counts)) != 0:
        step = 1 if rest > 0 else -1
        open_ = [i for i, count in enumerate(counts) if least <= count + step <= capacity]
        counts[max(open_, key=lambda i: step * (shares[i] - counts[i]))] += step
    return counts
