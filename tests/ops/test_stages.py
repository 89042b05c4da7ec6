"""Budgets over several layers, against sums over the layers one by one."""

from __future__ import annotations

import pytest

from tango.errors import BudgetError
from tango.ops.stages import LEAST_SHARE, mean_over_stages, solve_stages


def entering(layers, shares, num_layers):
    """Share of the tokens that runs through each layer."""
    per_layer, now = [], 1.0
    for i in range(num_layers):
        if i in layers:
            now = shares[layers.index(i)]
        per_layer.append(now)
    return per_layer


@pytest.mark.parametrize("layers", [(7, 14, 21), (1, 2, 3), (5,), (1, 27)])
def test_mean_is_the_average_over_layers(layers):
    shares = (0.5, 0.25, 0.125)
    assert mean_over_stages(layers, shares, 28) == pytest.approx(sum(entering(layers, shares, 28)) / 28)


def test_four_equal_stages_that_halve():
    assert mean_over_stages((7, 14, 21), (0.5, 0.25, 0.125), 28) == 0.46875


def squared(ratio):
    return ratio, ratio**2


def spread(first):
    return first, first + 2


@pytest.mark.parametrize("mean", [0.11, 0.2, 0.3, 0.42, 0.5, 0.77])
@pytest.mark.parametrize("layer", [1, 4, 7])
def test_the_first_stage_is_the_latest_that_keeps_a_tenth(mean, layer):
    first, ratio = solve_stages(mean, num_layers=10, layer=layer, stages=spread, shares=squared)
    assert sum(entering(spread(first), squared(ratio), 10)) / 10 == pytest.approx(mean)
    assert 1 <= first <= layer
    assert first == 1 or ratio >= LEAST_SHARE
    for later in range(first + 1, layer + 1):  # at the ratio of a tenth, each later one is already too much
        assert sum(entering(spread(later), squared(LEAST_SHARE), 10)) / 10 > mean


def test_all_stay_at_mean_one():
    assert solve_stages(1, num_layers=10, layer=4, stages=spread, shares=lambda r: (r, r)) == (4, 1.0)


@pytest.mark.parametrize(("mean", "message"), [(0.1, "out of reach"), (0.0, "must lie in"), (1.5, "must lie in")])
def test_infeasible(mean, message):
    with pytest.raises(BudgetError, match=message):
        solve_stages(mean, num_layers=10, layer=4, stages=spread, shares=squared)


def test_layers_that_do_not_exist():
    with pytest.raises(BudgetError, match=r"1\.\.9 for an LLM of 10 layers, got 12"):
        mean_over_stages((3, 12), (0.5, 0.5), 10)
