"""tango.batched.layout: who competes with whom, and for how many kept tokens."""

from __future__ import annotations

import numpy as np
import pytest

from tango.batched.layout import Group, arrange, competing_groups
from tango.methods.tango import TangoPruner
from tango.ops.segmentation import static_positions

# Three segments of 2, 1 and 3 frames with 4 positions; what is static between frames 0-1, ..., 4-5.
LENGTHS = [2, 1, 3]
STATIC = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=bool)


def groups(retention_ratio: float, *, context_ratio: float = 0.5, exact: bool = False) -> list[Group]:
    static = static_positions(LENGTHS, STATIC)
    static, budgets = TangoPruner(retention_ratio=retention_ratio, exact_budget=exact)._budgets(LENGTHS, static)
    return list(competing_groups(LENGTHS, static, budgets, context_ratio))


def test_static_places_do_not_change_at_all_within_a_segment() -> None:
    found = static_positions(LENGTHS, STATIC)
    assert [positions.tolist() for positions in found] == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_groups_by_hand() -> None:
    # First segment: 8 tokens, 2 static, ratio 0.5 / (6 / 8): 2 of 2, 2 of 2 per frame. Third: 0.5 / (10 / 12) = 0.6.
    described = [(g.frames, g.positions.tolist(), g.num_salient, g.num_context, g.joint, g.span) for g in groups(0.5)]
    assert described == [
        ([0], [0, 1], 1, 1, False, 2),
        ([0, 1], [2, 3], 1, 2, True, 1),
        ([3], [1], 0, 1, False, 3),
        ([3, 4, 5], [0, 2, 3], 1, 3, True, 1),
        ([2], [0, 1, 2, 3], 1, 1, False, 1),
    ]


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.9])
def test_an_exact_budget_is_met(ratio: float) -> None:
    found = groups(ratio, exact=True)
    kept = sum(len(g.frames) * g.num_salient + g.num_context * (1 if g.joint else len(g.frames)) for g in found)
    assert kept == max(1, round(ratio * 24))
    if ratio == 0.9:  # more than averaging would leave
        assert all(g.span == 1 for g in found)


def test_single_frames_of_one_budget_are_a_group() -> None:
    static = static_positions([1] * 5, np.ones((4, 4), dtype=bool))
    (found,) = competing_groups([1] * 5, static, [(0, 2)] * 5, 0.0)
    assert (found.frames, found.num_salient, found.num_context) == ([0, 1, 2, 3, 4], 2, 0)


def test_every_competing_token_has_a_row() -> None:
    layout = arrange(groups(0.5), 6, 4, max_rows=100)
    # Static positions 0, 1 of frames 0-1; positions 2, 3 of both; position 1 of frames 3-5; their other ones; frame 2.
    assert layout.tokens.tolist() == [0, 1, 2, 3, 6, 7, 13, 12, 14, 15, 16, 18, 19, 20, 22, 23, 8, 9, 10, 11]
    assert layout.spans.tolist() == [2, 2, 1, 1, 1, 1, 3] + [1] * 13
    assert layout.rows.reshape(6, 4).tolist() == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [16, 17, 18, 19],
        [7, 6, 8, 9],
        [10, 6, 11, 12],
        [13, 6, 14, 15],
    ]
    (batch,) = layout.batches
    assert batch.rows == slice(0, 20)
    assert batch.frame_sizes.tolist() == [2, 2, 2, 1, 3, 3, 3, 4]
    assert batch.num_salient.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert batch.set_sizes.tolist() == [1, 2, 1, 6, 3]
    assert batch.num_context.tolist() == [1, 2, 1, 3, 1]
    assert layout.num_averaged == 2 * 2 + 4 + 3 + 6 + 2


def test_tokens_of_no_group_have_the_row_after_the_last() -> None:
    layout = arrange([Group([1], np.array([0, 2]), 1, 0)], 2, 3, max_rows=100)
    assert layout.rows.tolist() == [2, 2, 2, 0, 2, 1]


def test_rows_are_divided_into_batches_where_groups_allow() -> None:
    singles, joint = Group([0, 1, 2, 3, 4], np.arange(4), 1, 1), Group([5, 6, 7], np.arange(4), 1, 2, joint=True)
    small = Group([5], np.arange(2), 1, 0, span=3)
    for order, expected in (((singles, joint, small), [8, 8, 4, 12, 2]), ((joint, small, singles), [12, 10, 8, 4])):
        layout = arrange(order, 8, 6, max_rows=11)
        assert [batch.rows.stop - batch.rows.start for batch in layout.batches] == expected
        assert [batch.frame_sizes.sum() for batch in layout.batches] == expected
        assert layout.batches[-1].rows.stop == len(layout.tokens)
