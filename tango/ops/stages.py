"""Budgets of methods that drop visual tokens at several decoder layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tango.ops.flops import check_layer, solve_layer_ratio

LEAST_SHARE = 0.1  # if the first stage left a smaller share of the tokens than this, it moves to an earlier layer
_BISECTIONS = 60

Stages = Callable[[int], tuple[int, ...]]  # first layer -> layers of all stages
Shares = Callable[[float], tuple[float, ...]]  # ratio -> what each stage leaves, of the tokens that enter the LLM


def mean_over_stages(layers: Sequence[int], shares: Sequence[float], num_layers: int) -> float:
    """Fraction of visual tokens that enter a layer, averaged over the LLM's layers, when all of them enter the LLM.

    Args:
        layers: tokens are dropped at the inputs of these layers, which increase.
        shares: the share of the tokens that entered the LLM which each of them leaves; further shares do not count.
    Raises:
        BudgetError: the LLM has no such layers.
    """
    check_layer(layers[-1], num_layers)
    edges = (0, *layers, num_layers)
    lengths = [edges[i + 1] - edges[i] for i in range(len(edges) - 1)]
    return sum(n * share for n, share in zip(lengths, (1.0, *shares), strict=False)) / num_layers


def solve_stages(mean: float, *, num_layers: int, layer: int, stages: Stages, shares: Shares) -> tuple[int, float]:
    """The first layer and the ratio that give this mean over the LLM's layers.

    The first layer is `layer` if its stage then leaves at least a tenth of the tokens. Otherwise it is the latest of
    the earlier layers where that holds, or layer 1: a late first stage would spend the budget on the layers before it
    and starve those after it.

    Args:
        shares: grows with the ratio from 0 to 1, where all tokens stay.
    Raises:
        BudgetError: `mean` is outside (0, 1], or layer 0, which sees all tokens, alone reaches it.
    """
    solve_layer_ratio(mean, num_layers=num_layers, layer=1)  # raises
    check_layer(layer, num_layers)
    if mean == 1:
        return layer, 1.0
    for first in range(layer, 0, -1):
        layers = stages(first)
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if mean_over_stages(layers, shares(middle), num_layers) < mean:
                low = middle
            else:
                high = middle
        if first < num_layers * mean and shares(high)[0] >= LEAST_SHARE:
            break
    return first, high
