"""What every registered layer pruner promises, whatever it does inside."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path

import pytest
import torch
import yaml

from tango.containers import LayerTokens
from tango.errors import BudgetError, OptionError
from tango.methods import available_layer_pruners, build_layer_pruner, build_pruner_for_mean, layer_pruner_class
from tests.layer_tokens import random_prompt

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"
SHAPES = {
    "video": {},
    "one frame": {"frames": 1},
    "one token": {"frames": 1, "cells": 1},
    "one token a frame": {"cells": 1},
    "one token of text": {"text": 1},
    "no text before": {"before": 0},
    "as many groups as heads": {"groups": 4},
}


@pytest.fixture(params=available_layer_pruners())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def prompts(name: str, **options) -> list[tuple]:
    """A pruner and a prompt at its first layer, and at its last as it might get there."""
    pruner = build_layer_pruner(name)
    found = []
    for layer in dict.fromkeys((pruner.layers[0], pruner.layers[-1])):
        found.append((pruner, random_prompt(layer=layer, **options)))
    return found


def tensors(tokens: LayerTokens) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(tokens, field.name) for field in dataclasses.fields(tokens)}
    return {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_states_and_indices_fit(name, shape, dtype):
    for pruner, tokens in prompts(name, **SHAPES[shape], dtype=dtype):
        states, indices = pruner(tokens)
        assert indices.dtype == torch.int64
        assert 1 <= len(indices) <= len(tokens.visual)
        assert (indices.diff() > 0).all()
        assert indices[0] >= 0
        assert indices[-1] < len(tokens.visual)
        assert states.shape == (len(indices), tokens.hidden.shape[1])
        assert states.dtype == dtype
        assert states.isfinite().all()


@pytest.mark.usefixtures("unchecked_annotations")  # whose checker draws from Python's generator
def test_twice_the_same_and_nothing_is_touched(name):
    for pruner, tokens in prompts(name):
        before = copy.deepcopy(tensors(tokens))
        torch_state, python_state = torch.get_rng_state(), random.getstate()
        (first, kept), (second, again) = pruner(tokens), pruner(tokens)
        assert torch.equal(first, second)
        assert torch.equal(kept, again)
        assert all(torch.equal(before[key], value) for key, value in tensors(tokens).items())
        assert torch.equal(torch_state, torch.get_rng_state())
        assert python_state == random.getstate()


def test_all_stay_untouched_at_ratio_one(name):
    tokens = random_prompt(dtype=torch.bfloat16)
    states, kept = build_layer_pruner(name, retention_ratio=1.0)(tokens)
    assert kept.tolist() == list(range(len(tokens.visual)))
    assert torch.equal(states, tokens.hidden[tokens.visual])


def test_states_are_differentiable(name):
    for pruner, tokens in prompts(name):
        hidden = tokens.hidden.clone().requires_grad_()
        states, kept = pruner(dataclasses.replace(tokens, hidden=hidden))
        states.sum().backward()
        assert (hidden.grad[tokens.visual[kept]].abs().sum(-1) > 0).all()


def test_rebuilds_from_its_config(name):
    pruner = build_layer_pruner(name, retention_ratio=0.3)
    assert build_layer_pruner(name, **pruner.config()) == pruner
    solved = build_layer_pruner(name).for_mean(0.7, 28)
    assert build_layer_pruner(name, **solved.config()) == solved


def test_config_file_holds_the_defaults(name):
    options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert options.pop("method") == name
    assert options.keys() == {field.name for field in dataclasses.fields(layer_pruner_class(name))}
    assert build_layer_pruner(name, **options) == build_layer_pruner(name)


def test_layers_increase_and_begin_with_the_first(name):
    for pruner in (build_layer_pruner(name), build_layer_pruner(name).for_mean(0.7, 28)):
        assert pruner.layers[0] == pruner.layer >= 1
        assert list(pruner.layers) == sorted(set(pruner.layers))


@pytest.mark.parametrize("mean", [0.65, 0.7, 1.0])
def test_the_mean_share_is_what_was_asked_for(name, mean):
    pruner = build_layer_pruner(name).for_mean(mean, 28)
    assert pruner.mean_share(28) == pytest.approx(mean)
    before = build_pruner_for_mean("uniform", mean / 2, pruner, 28)
    assert before.retention_ratio == pytest.approx(0.5)
    if mean < 1:
        with pytest.raises(BudgetError, match="out of reach"):
            build_pruner_for_mean("uniform", mean + 0.01, pruner, 28)


def test_the_layer_before_is_changed_only_by_methods_that_read_it(name):
    if layer_pruner_class(name).reads == "before":
        assert build_layer_pruner(name, noncausal_layer=True).noncausal_layer
    else:
        with pytest.raises(OptionError, match="does not read the layer before"):
            build_layer_pruner(name, noncausal_layer=True)
