"""Pruning at several layers, and intra-LLM methods as methods of their own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import tango
from tango.methods.fastv_merge import FastvMergePruner
from tests import layer_oracle, tiny
from tests.runtime.test_layer_prune import (
    DECODING,
    INSIDE,
    alone,
    equal_lengths,
    generate,
    references,
    repetitive,
    short_of,
    with_text_row,
)
from tests.runtime.test_pruning import GREEDY, NEW, new_tokens, one_video, three_videos


@pytest.fixture(scope="module")
def model():
    return tiny.llava_onevision()


@dataclass(frozen=True, kw_only=True)
class Twice(FastvMergePruner):
    """At the inputs of two layers."""

    @property
    def layers(self):
        return (self.layer, 3)


class TwiceByItself(Twice):
    """Each time by the attention of the layer itself."""

    reads = "own"


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("make_inputs", [one_video, three_videos, equal_lengths, with_text_row])
@pytest.mark.parametrize("kind", [Twice, TwiceByItself])
@pytest.mark.parametrize("layer", [1, 2])
def test_several_layers_equal_the_oracle(model, kind, layer, make_inputs, options):
    inside = kind(layer=layer, retention_ratio=0.5)
    rows, stats = generate(model, make_inputs(), inside, **options)
    assert rows == references(make_inputs, inside)
    first, second, third = stats.layer.tokens
    assert stats.layer.layers == (layer, 3)
    assert first > second > third
    mean = (first * layer + second * (3 - layer) + third) / (4 * first)
    assert stats.layer.mean_retention_ratio == pytest.approx(mean * stats.tokens_after / stats.tokens_before)


@pytest.mark.parametrize("kind", [Twice, TwiceByItself])
def test_beams_and_candidates_at_several_layers(model, kind):
    inside, inputs = kind(layer=2, retention_ratio=0.5), three_videos()
    rows = [alone(inputs, 0, slice(0, 2)), alone(inputs, 1, slice(2, 3))]
    expected = [generate(model, row, inside, num_beams=3)[0][0] for row in rows]
    assert generate(model, inputs, inside, num_beams=3)[0] == expected
    assert generate(model, repetitive(), inside, prompt_lookup_num_tokens=3)[0] == references(repetitive, inside)


def test_a_method_inside_the_llm_is_a_method(model):
    """All tokens enter, and the ratio at the layer follows from the mean."""
    with tango.prune(model, "fastv", retention_ratio=0.6) as pruning:
        got = new_tokens(model, one_video(), model.generate(**one_video(), **GREEDY))
    stats, layer = pruning.stats, pruning.stats.layer
    assert stats.method == layer.method == "fastv"
    assert stats.tokens_after == stats.tokens_before
    assert layer.layers == (2,)
    assert layer.tokens[1] == round(0.2 * layer.tokens[0])
    assert layer.mean_retention_ratio == pytest.approx(0.6, abs=0.01)
    assert "97 -> 19 at layer 2 (100.0 %, 59.8 % averaged over the layers)" in str(stats)
    inside = FastvMergePruner(layer=2, retention_ratio=pruning.layer_pruner.retention_ratio, merge_weight=1)
    short = short_of(model, one_video(), {"method": "uniform", "retention_ratio": 1.0})
    assert got == [layer_oracle.greedy(model, short, 0, inside, NEW)]


@pytest.mark.parametrize("name", ["fastv", "dart"])
def test_ways_to_name_a_method_inside_the_llm(model, name):
    def generated(*args, **options):
        with tango.prune(model, *args, **options):
            return new_tokens(model, three_videos(), model.generate(**three_videos(), **GREEDY))

    built = tango.build_layer_pruner(name, layer=1).for_mean(0.5, 4)
    expected = generated(built)
    assert generated(name, retention_ratio=0.5, layer=1) == expected
    assert generated(name, mean_retention_ratio=0.5, layer=1) == expected
    assert generated("uniform", retention_ratio=1.0, layer_pruner=built) == expected


def test_mistakes_with_methods_inside_the_llm(model):
    with pytest.raises(tango.BudgetError, match="the first 2 layers see all tokens"):
        tango.prune(model, "fastv")
    with pytest.raises(tango.OptionError, match="fastv prunes inside the LLM already"):
        tango.prune(model, "fastv", retention_ratio=0.6, layer_pruner=INSIDE)
    with pytest.raises(tango.BudgetError, match="not both"):
        tango.prune(model, "fastv", retention_ratio=0.6, mean_retention_ratio=0.6)
    with pytest.raises(tango.UnknownNameError, match="num_visual_pivots"):
        tango.prune(model, "dart", retention_ratio=0.6, num_pivots=3)
    with pytest.raises(tango.UnknownNameError, match="fastv"):
        tango.prune(model, "fast", retention_ratio=0.6)
    with pytest.raises(tango.TangoError, match="built already"):
        tango.prune(model, tango.build_layer_pruner("fastv"), retention_ratio=0.6)
    with pytest.raises(tango.BudgetError, match="got 9"):
        tango.prune(model, tango.build_layer_pruner("fastv", layer=9))
