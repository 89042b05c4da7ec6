"""tango.ops.groups: who competes with whom, and for how many places."""

from __future__ import annotations

import numpy as np
import pytest

from tango.ops.groups import Group, competing_groups, static_places

# Three segments of 2, 1 and 3 frames with 4 places; what is static between frames 0-1, ..., 4-5.
LENGTHS = [2, 1, 3]
STATIC = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=bool)


def groups(retention_ratio: float, *, context_ratio: float = 0.5, exact: bool = False, turn: int = 10) -> list[Group]:
    def blocks_of(count: int) -> list[slice]:
        return [slice(start, start + turn) for start in range(0, count, turn)]

    static = static_places(LENGTHS, STATIC)
    return list(competing_groups(LENGTHS, static, retention_ratio, context_ratio, exact=exact, blocks_of=blocks_of))


def test_static_places_do_not_change_at_all_within_a_segment() -> None:
    found = static_places(LENGTHS, STATIC)
    assert [places.tolist() for places in found] == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_groups_by_hand() -> None:
    # First segment: 8 tokens, 2 static, ratio 0.5 / (6 / 8): 2 of 2, 2 of 2 per frame. Third: 0.5 / (10 / 12) = 0.6.
    described = [(g.frames, g.places.tolist(), g.num_salient, g.num_context, g.joint, g.span) for g in groups(0.5)]
    assert described == [
        ([0], [0, 1], 1, 1, False, 2),
        ([0, 1], [2, 3], 1, 2, True, 1),
        ([3], [1], 0, 1, False, 3),
        ([3, 4, 5], [0, 2, 3], 1, 3, True, 1),
        ([2], [0, 1, 2, 3], 1, 1, False, 1),
    ]
    assert [g.covered for g in groups(0.5)] == [[0, 1], [0, 1], [3, 4, 5], [3, 4, 5], [2]]


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.9])
def test_an_exact_budget_is_met(ratio: float) -> None:
    found = groups(ratio, exact=True)
    kept = sum(len(g.frames) * g.num_salient + g.num_context * (1 if g.joint else len(g.frames)) for g in found)
    assert kept == max(1, round(ratio * 24))
    if ratio == 0.9:  # more than averaging would leave
        assert all(g.span == 1 for g in found)


def test_single_frames_of_one_budget_take_turns() -> None:
    static = static_places([1] * 5, np.ones((4, 4), dtype=bool))
    options = {"exact": False, "blocks_of": lambda count: [slice(0, 3), slice(3, count)]}
    found = list(competing_groups([1] * 5, static, 0.5, 0.0, **options))
    assert [g.frames for g in found] == [[0, 1, 2], [3, 4]]
    assert all((g.num_salient, g.num_context) == (2, 0) for g in found)
