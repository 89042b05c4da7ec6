"""tango.ops.anchor_frames: a segment's budget shared out over its frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tango.errors import BudgetError
from tango.ops.anchor_frames import divided_counts, equal_counts, every_nth, exact_counts, last_of_runs

ALL = [True] * 6


@pytest.mark.parametrize(
    ("is_open", "stride", "marked"),
    [
        ("111111", 4, "010001"),
        ("111111", 1, "111111"),
        ("110101", 2, "010001"),  # of 0, 1, 3, 5 the last and, two further back, 1
        ("000001", 3, "000001"),
        ("1", 4, "1"),
    ],
)
def test_every_nth(is_open: str, stride: int, marked: str) -> None:
    assert every_nth([c == "1" for c in is_open], stride) == [c == "1" for c in marked]


@pytest.mark.parametrize(
    ("threshold", "marked"),
    [(None, [True] * 5), (0.9, [False, False, True, True, True]), (0.95, [True, False, True, True, True])],
)
def test_last_of_runs(threshold: float | None, marked: list[bool]) -> None:
    """Segments of 3 and 2 frames: 0 resembles 1, and 1 resembles 2 more; 2 ends a segment though 3 is like it."""
    assert last_of_runs([0.9, 0.95, 0.99, 0.1], [3, 2], threshold) == marked


def test_equal_counts() -> None:
    """Of 19 tokens 7 are for anchors: 42 in two frames; 35 of 5 frames are 17 in each of two, and one is lost."""
    assert equal_counts(19, 0.4, 196, 6, 4) == [(12, 0), (12, 21), (12, 0), (12, 0), (12, 0), (12, 21)]
    assert equal_counts(19, 0.4, 196, 5, 4) == [(12, 17), (12, 0), (12, 0), (12, 0), (12, 17)]
    assert equal_counts(10, 0.5, 11, 2, 4) == [(5, 0), (5, 6)]  # 10 anchors, room for 6


def test_divided_counts() -> None:
    assert divided_counts(31, 0.4, 20, ALL, 4, max_anchors=20) == [(4, 0), (3, 6), (3, 0), (3, 0), (3, 0), (3, 6)]
    open_ = [True, False, False, True, False, True]
    assert divided_counts(31, 0.4, 20, open_, 2, max_anchors=5) == [(7, 5), (0, 0), (0, 0), (6, 0), (0, 0), (6, 5)]
    assert divided_counts(40, 0.4, 10, [False, True], 4, max_anchors=5) == [(0, 0), (5, 5)]
    assert divided_counts(9, 0.4, 20, [True] * 5, 4, max_anchors=20) == [(2, 1), (1, 0), (1, 0), (1, 0), (1, 2)]
    assert divided_counts(2, 0.4, 20, [True], 4, max_anchors=20) == [(2, 0)]
    assert divided_counts(2, 0.4, 20, [True], 4, min_anchors=1, max_anchors=20) == [(1, 1)]


def test_exact_counts() -> None:
    assert exact_counts(31, 0.4, 20, ALL, 4) == [(4, 0), (3, 6), (3, 0), (3, 0), (3, 0), (3, 6)]
    assert exact_counts(5, 1.0, 4, [False, True], 4) == [(1, 0), (0, 4)]  # both frames are needed, one for anchors
    with pytest.raises(BudgetError, match="cannot take 9 tokens from groups of 8"):
        exact_counts(9, 0.4, 4, [True, True], 4)


@given(
    st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 12), st.integers(1, 5), st.floats(0, 1), st.data()
)
def test_exact_counts_add_up(is_open: list[bool], N: int, stride: int, share: float, data: st.DataObject) -> None:
    is_open[-1] = True
    total = data.draw(st.integers(0, len(is_open) * N))
    counts = exact_counts(total, share, N, is_open, stride)
    assert sum(map(sum, counts)) == total
    assert max(map(sum, counts)) <= N
    assert min(min(pair) for pair in counts) >= 0
    assert sum(anchors for _, anchors in counts) <= int(total * share)
    closed = [count for count, open_ in zip(counts, is_open, strict=True) if not open_]
    assert total > N * sum(is_open) or closed == [(0, 0)] * len(closed)
