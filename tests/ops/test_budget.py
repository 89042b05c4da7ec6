"""tango.ops.budget: from ratios to counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango.errors import BudgetError
from tango.ops.budget import (
    apportion,
    ceil_count,
    ceil_product,
    exact_count,
    exact_segment_budgets,
    floor_count,
    round_to_total,
    segment_budgets,
)

RATIOS = st.floats(1e-6, 1.0)


@st.composite
def segmented_videos(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Segment lengths, static tokens of each, tokens per frame. Single frames have no static tokens."""
    N = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    static = [draw(st.integers(0, N)) if length > 1 else 0 for length in lengths]
    return lengths, static, N


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "expected"),
    [(6272, 0.1, 627), (6272, 0.15, 941), (6272, 0.2, 1254), (10, 0.05, 1), (10, 1e-9, 1), (1, 0.3, 1), (7, 1.0, 7)],
)
def test_exact_count(num_tokens: int, ratio: float, expected: int) -> None:
    assert exact_count(num_tokens, ratio) == expected


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "expected"),
    [(196, 0.1, 20), (196, 0.15, 30), (196, 0.2, 40), (169, 0.1, 17), (5, 1e-9, 1), (5, 1.0, 5), (0, 0.5, 0)],
)
def test_ceil_count(num_tokens: int, ratio: float, expected: int) -> None:
    assert ceil_count(num_tokens, ratio) == expected


def test_ceil_count_rounds_the_float_product_as_the_release_does() -> None:
    assert 100 * 0.07 > 7
    assert ceil_count(100, 0.07) == 8


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "expected"),
    [(100, 0.07, 7), (196, 0.2 / (22.4 / 28), 49), (196, 0.125, 25), (5, 1e-9, 0), (5, 1.0, 5), (0, 0.5, 0)],
)
def test_ceil_product_is_not_raised_by_a_rounding_error(num_tokens: int, ratio: float, expected: int) -> None:
    assert ceil_product(num_tokens, ratio) == expected


class TestApportion:
    @pytest.mark.parametrize(
        ("total", "sizes", "expected"),
        [
            (4, [4, 4], [2, 2]),
            (3, [4, 4], [2, 1]),  # equal remainders: the earlier
            (5, [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]),
            (10, [70, 20, 10], [7, 2, 1]),
            (5, [70, 20, 10], [4, 1, 0]),  # remainders .5, 0, .5
            (2, [1, 98, 1], [0, 2, 0]),
            (3, [3, 0], [3, 0]),
            (1, [0, 0, 2], [0, 0, 1]),
            (0, [5, 5], [0, 0]),
            (0, [0, 0], [0, 0]),
            (0, [], []),
        ],
    )
    def test_by_hand(self, total: int, sizes: list[int], expected: list[int]) -> None:
        assert apportion(total, sizes) == expected

    @given(st.lists(st.integers(0, 50), min_size=1, max_size=10), st.floats(0, 1))
    def test_is_complete_and_within_one_of_proportional(self, sizes: list[int], share: float) -> None:
        available = sum(sizes)
        total = round(share * available)
        shares = apportion(total, sizes)
        assert sum(shares) == total
        for got, size in zip(shares, sizes, strict=True):
            assert 0 <= got <= size
            assert abs(got * available - total * size) < max(available, 1)

    @pytest.mark.parametrize(("total", "sizes"), [(6, [2, 3]), (1, []), (1, [0]), (-1, [4])])
    def test_impossible_totals_are_refused(self, total: int, sizes: list[int]) -> None:
        with pytest.raises(BudgetError, match=f"cannot take {total} tokens from groups of {sum(sizes)} in all"):
            apportion(total, sizes)


class TestSegmentBudgets:
    @pytest.mark.parametrize(
        ("lengths", "static", "N", "ratio", "expected"),
        [
            ([1, 1], [0, 0], 196, 0.1, [(0, 20), (0, 20)]),
            ([4], [0], 196, 0.1, [(0, 80)]),  # rounded up in every frame
            ([4], [100], 100, 0.1, [(40, 0)]),  # 400 tokens, 100 left to choose from: ratio 0.4
            ([2], [50], 100, 0.15, [(10, 20)]),  # 200 tokens, 150 left: ratio 0.2
            ([5], [90], 100, 0.5, [(90, 50)]),  # 500 tokens, 140 left: the ratio stops at 1
            ([3], [1], 10, 0.01, [(1, 3)]),  # at least one token of every group and frame
            ([2, 1], [50, 0], 100, 0.15, [(10, 20), (0, 15)]),  # a saving stays within its segment
        ],
    )
    def test_by_hand(
        self, lengths: list[int], static: list[int], N: int, ratio: float, expected: list[tuple[int, int]]
    ) -> None:
        assert segment_budgets(lengths, static, N, ratio) == expected

    @given(segmented_videos(), RATIOS)
    def test_no_group_keeps_more_than_it_has_or_nothing(
        self, video: tuple[list[int], list[int], int], ratio: float
    ) -> None:
        lengths, static, N = video
        for length, S, (num_static, num_dynamic) in zip(
            lengths, static, segment_budgets(lengths, static, N, ratio), strict=True
        ):
            assert min(S, 1) <= num_static <= S
            assert min(N - S, 1) * length <= num_dynamic <= (N - S) * length
            assert num_dynamic % length == 0

    @given(segmented_videos(), RATIOS)
    def test_each_segment_keeps_its_ratio_up_to_rounding(
        self, video: tuple[list[int], list[int], int], ratio: float
    ) -> None:
        lengths, static, N = video
        for length, S, counts in zip(lengths, static, segment_budgets(lengths, static, N, ratio), strict=True):
            wanted = min(ratio * length * N, length * N - (length - 1) * S)
            assert wanted - 1e-6 <= sum(counts) < wanted + length + 1


class TestExactSegmentBudgets:
    @pytest.mark.parametrize(
        ("lengths", "static", "N", "ratio", "expected"),
        [
            ([1, 1], [0, 0], 196, 0.1, [(0, 20), (0, 19)]),  # round(39.2) of both together
            ([4], [100], 100, 0.1, [(40, 0)]),
            ([2], [50], 100, 0.15, [(10, 20)]),
            ([2, 2], [0, 0], 10, 0.05, [(0, 1), (0, 1)]),
            ([2, 2], [0, 0], 10, 1e-9, [(0, 1), (0, 0)]),
        ],
    )
    def test_by_hand(
        self, lengths: list[int], static: list[int], N: int, ratio: float, expected: list[tuple[int, int]]
    ) -> None:
        assert exact_segment_budgets(lengths, static, N, ratio) == expected

    @given(segmented_videos(), RATIOS)
    def test_adds_up_or_says_that_it_cannot(self, video: tuple[list[int], list[int], int], ratio: float) -> None:
        lengths, static, N = video
        wanted = exact_count(sum(lengths) * N, ratio)
        available = sum(S + length * (N - S) for length, S in zip(lengths, static, strict=True))
        if wanted > available:
            with pytest.raises(BudgetError, match=f"cannot take {wanted} tokens from groups of {available}"):
                exact_segment_budgets(lengths, static, N, ratio)
            return
        counts = exact_segment_budgets(lengths, static, N, ratio)
        assert sum(map(sum, counts)) == wanted
        for length, S, (num_static, num_dynamic) in zip(lengths, static, counts, strict=True):
            assert 0 <= num_static <= S
            assert 0 <= num_dynamic <= length * (N - S)


class TestRoundToTotal:
    @pytest.mark.parametrize(
        ("shares", "total", "expected"),
        [
            ([2.0, 3.0], 5, [2, 3]),
            ([2.5, 3.5], 6, [2, 4]),  # halves to even
            ([1.4, 1.4, 1.2], 4, [2, 1, 1]),  # equally far off: the earlier
            ([1.6, 1.8, 1.6], 5, [1, 2, 2]),
            ([9.0, 1.0], 12, [9, 3]),  # none above 9
            ([0.1, 0.2, 5.7], 6, [1, 1, 4]),  # every share gets one
            ([0.1, 0.2, 5.7], 2, [0, 0, 2]),  # unless there are too few
            ([], 0, []),
        ],
    )
    def test_by_hand(self, shares: list[float], total: int, expected: list[int]) -> None:
        assert round_to_total(shares, total, 9) == expected

    @given(st.lists(st.floats(0, 12), max_size=9), st.integers(0, 12), st.data())
    def test_adds_up_within_bounds(self, shares: list[float], capacity: int, data: st.DataObject) -> None:
        total = data.draw(st.integers(0, len(shares) * capacity))
        counts = round_to_total(shares, total, capacity)
        assert sum(counts) == total
        assert all(0 <= count <= capacity for count in counts)
        assert 0 not in counts or total < len(shares)

    def test_more_than_there_are(self) -> None:
        with pytest.raises(BudgetError, match="cannot take 7 tokens from 2 groups of 3"):
            round_to_total([3.0, 3.0], 7, 3)


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "expected"),
    [(6272, 0.5**3, 784), (10, 0.39, 3), (1, 0.1, 1), (5, 0.4, 2), (5, (2.8 - 2) / 2, 2), (100, 0.29, 29), (7, 1.0, 7)],
)
def test_floor_count_forgives_rounding_errors(num_tokens: int, ratio: float, expected: int) -> None:
    assert floor_count(num_tokens, ratio) == expected
