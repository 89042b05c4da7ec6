"""What every registered layer pruner promises, whatever it does inside."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tango.containers import LayerTokens
from tango.errors import BudgetError, OptionError
from tango.methods import (
    LayerPruner,
    available_layer_pruners,
    build_layer_pruner,
    build_pruner,
    layer_pruner_class,
)
from tests.layer_tokens import random_prompt

METHODS = available_layer_pruners()
CASES = {
    "video": lambda: random_prompt(),
    "one_frame": lambda: random_prompt(frames=1),
    "one_token": lambda: random_prompt(frames=1, cells=1),
    "two_tokens": lambda: random_prompt(frames=2, cells=1),
    "no_text_after": lambda: random_prompt(text=1),
    "equal_tokens": lambda: dataclasses.replace(random_prompt(), hidden=torch.ones(64, 16), keys=torch.ones(64, 2, 8)),
    "zeros": lambda: dataclasses.replace(random_prompt(), hidden=torch.zeros(64, 16), keys=torch.zeros(64, 2, 8)),
    "late_and_shortened": lambda: random_prompt(layer=5, counts=(200, 200, 200, 90, 54)),
}


@pytest.fixture(params=METHODS)
def pruner(request: pytest.FixtureRequest) -> LayerPruner:
    return build_layer_pruner(request.param, retention_ratio=0.3)


def tensors(tokens: LayerTokens) -> dict[str, Tensor]:
    values = {field.name: getattr(tokens, field.name) for field in dataclasses.fields(tokens)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("case", CASES)
def test_result_fits(pruner, case):
    tokens = CASES[case]()
    for layer in pruner.layers[:3]:
        states, indices = pruner(dataclasses.replace(tokens, layer=layer))
        assert 1 <= len(indices) <= len(tokens.visual)
        assert indices.dtype == torch.int64
        assert (indices.diff() > 0).all()
        assert indices[0] >= 0
        assert indices[-1] < len(tokens.visual)
        assert states.shape == (len(indices), tokens.hidden.shape[1])
        assert states.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_from_equal_numbers_alike(pruner, dtype):
    half = random_prompt(dtype=dtype, layer=pruner.layer)
    full = dataclasses.replace(half, hidden=half.hidden.float(), norm_weight=half.norm_weight.float())
    (states, indices), (expected, same) = (pruner(tokens) for tokens in (half, full))
    assert states.dtype == dtype
    assert torch.equal(indices, same)
    torch.testing.assert_close(states.float(), expected, rtol=2e-2, atol=2e-2)


def test_repeats_itself_and_leaves_the_world_alone(pruner):
    tokens = random_prompt(layer=pruner.layer)
    before = {name: value.clone() for name, value in tensors(tokens).items()}
    random_state = torch.get_rng_state()
    first, second = pruner(tokens), pruner(tokens)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in tensors(tokens).items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_states_stay_differentiable(pruner):
    tokens = random_prompt(layer=pruner.layer)
    hidden = tokens.hidden.clone().requires_grad_()
    states, indices = pruner(dataclasses.replace(tokens, hidden=hidden))
    states.sum().backward()
    assert (hidden.grad[tokens.visual[indices]].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_ratio_one_returns_all_tokens_to_the_last_bit(name):
    tokens = random_prompt()
    states, indices = build_layer_pruner(name, retention_ratio=1.0)(tokens)
    assert torch.equal(states, tokens.hidden[tokens.visual])
    assert torch.equal(indices, torch.arange(len(tokens.visual)))


@pytest.mark.parametrize("name", METHODS)
def test_rebuilds_from_its_config(name):
    pruner = build_layer_pruner(name, retention_ratio=0.3)
    assert build_layer_pruner(name, **pruner.config()) == pruner


@pytest.mark.parametrize("name", METHODS)
def test_says_where_it_comes_from(name):
    cls = layer_pruner_class(name)
    assert cls.paper.title
    assert cls.paper.licence
    assert cls.budget_rule
    assert "Source:" in cls.__doc__
    assert cls.__name__.lower() == name.replace("-", "") + "pruner"
    assert cls.__module__ == "tango.methods." + name.replace("-", "_")


@pytest.mark.parametrize("name", METHODS)
def test_layers_rise_from_the_first(name):
    for pruner in (build_layer_pruner(name), build_layer_pruner(name).for_mean(0.75, 28)):
        assert pruner.layers[0] == pruner.layer
        assert list(pruner.layers) == sorted(set(pruner.layers))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("mean", [0.72, 0.75, 1.0])  # the latest layer, 20 of 28, alone makes 0.714
def test_the_mean_share_is_what_was_asked_for(name, mean):
    pruner = build_layer_pruner(name).for_mean(mean, 28)
    assert build_layer_pruner(name, **pruner.config()) == pruner
    assert pruner.mean_share(28) == pytest.approx(mean)
    before = build_pruner("uniform").for_mean(mean / 2, 28, pruner)
    assert before.retention_ratio == pytest.approx(0.5)
    if mean < 1:
        with pytest.raises(BudgetError, match="out of reach"):
            build_pruner("uniform").for_mean(mean + 0.01, 28, pruner)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1])
def test_ratios_outside_0_to_1_are_refused(name, ratio):
    with pytest.raises(BudgetError, match="retention_ratio must lie in"):
        build_layer_pruner(name, retention_ratio=ratio)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("name", METHODS)
def test_wrong_types_are_refused(name):
    with pytest.raises(OptionError, match="layer must be a whole number, got '2'"):
        build_layer_pruner(name, layer="2")
