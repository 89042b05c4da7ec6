"""Decoding with a static cache: the dynamic cache's tokens, whatever came before on the same model."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import CompileConfig, StaticCache

import tango
from tango.runtime.decoding import decoding_options
from tests import tiny
from tests.runtime.test_decode_path import FAMILIES, GREEDY, build

STATIC = decoding_options(static_cache=True)
METHODS: dict[str, dict[str, Any]] = {
    "tango": {"retention_ratio": 0.4},
    "fastv": {"retention_ratio": 0.7, "layer": 2},
    "dart": {"retention_ratio": 0.7, "layer": 2},
}
# Qwen3-VL's deepstack features reach the layers that could be pruned; Qwen3.5's layers cannot be pruned at.
BEFORE_THE_LLM = ("qwen3_vl", "qwen3_5", "qwen3_5_moe")
PAIRS = [(name, method) for name in FAMILIES for method in METHODS if name not in BEFORE_THE_LLM or method == "tango"]


def compiled_everywhere() -> dict[str, Any]:
    """What a GPU does by itself: a static cache, and its step through the compiler, as Python."""
    config = CompileConfig(fullgraph=False, backend="eager", mode=None)
    config._compile_all_devices = True
    return {**STATIC, "compile_config": config}


def longer(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same video with a longer question."""
    more = torch.tensor([tiny.prompt(" And what happens after that, in the end?")])
    ids = torch.cat([inputs["input_ids"], more], 1)
    others = {"attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        others["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1)
    return {**inputs, **others, "input_ids": ids}


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_questions_of_several_lengths_get_the_dynamic_caches_tokens(name: str, method: str) -> None:
    model, short = build(name)
    asked = [short, longer(short), short]
    before = set(vars(model))
    with tango.prune(model, method, **METHODS[method]):
        for inputs in asked:
            expected = model.generate(**inputs, **GREEDY)
            assert torch.equal(model.generate(**inputs, **GREEDY, **STATIC), expected)
    assert set(vars(model)) == before


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
def test_a_step_that_was_compiled_for_one_method_is_not_taken_for_another(name: str) -> None:
    """torch.compile ignores hooks that were not there when it traced: methods inside the LLM are made of them."""
    torch.compiler.reset()
    static = compiled_everywhere()
    for method in ("tango", "fastv", "dart", "tango"):  # a fresh model, as one process may have several
        model, inputs = build(name)
        for _ in range(2):
            with tango.prune(model, method, **METHODS[method]):
                expected = model.generate(**inputs, **GREEDY)
                assert torch.equal(model.generate(**inputs, **GREEDY, **static), expected)


@pytest.mark.usefixtures("unchecked_annotations")
def test_pruning_anew_compiles_nothing_anew() -> None:
    torch.compiler.reset()
    model, inputs = build("llava_onevision")
    static = compiled_everywhere()
    stats = torch._dynamo.utils.counters["stats"]
    counts = []
    for _ in range(4):
        for ratio in (0.3, 0.6):
            with tango.prune(model, "uniform", retention_ratio=ratio):
                expected = model.generate(**inputs, **GREEDY)
                assert torch.equal(model.generate(**inputs, **GREEDY, **static), expected)
        counts.append(stats["unique_graphs"])
    assert 0 < counts[0] == counts[-1]


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("option", [{"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 7}], ids=str)
def test_prompts_that_stock_code_would_compile_are_not(option: dict[str, Any]) -> None:
    torch.compiler.reset()
    model, inputs = build("llava_onevision")
    if "prompt_lookup_num_tokens" in option and cache_argument(model) == "past_key_values":
        pytest.skip("transformers before 5.24 has no assisted decoding with static caches")
    static = compiled_everywhere()
    with tango.prune(model, "uniform", retention_ratio=0.4):
        expected = model.generate(**inputs, **GREEDY)
        model.generate(**inputs, **GREEDY, **static)  # the step is compiled without hooks
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert torch.equal(model.generate(**inputs, **GREEDY, **static, **option), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


def test_rows_of_a_batch_and_questions_after_it() -> None:
    model = tiny.llava_onevision()
    batch, one = tiny.one_video_per_row(), tiny.one_video()
    with tango.prune(model, "tango", retention_ratio=0.4):
        for inputs in (batch, one, batch):
            expected = model.generate(**inputs, **GREEDY)
            assert torch.equal(model.generate(**inputs, **GREEDY, **STATIC), expected)


def test_a_short_prompts_cache_is_not_as_long_as_the_unpruned_ones() -> None:
    model, inputs = build("llava_onevision")
    lengths: list[int] = []
    prepare = model._prepare_static_cache

    def noted(*args: Any, **kwargs: Any) -> Any:
        cache = prepare(*args, **kwargs)
        lengths.append(cache.layers[0].max_cache_len)
        return cache

    model._prepare_static_cache = noted
    stock = {name: value for name, value in inputs.items() if name not in ("video_timestamps_s", "video_first_equal")}
    model.generate(**stock, **GREEDY, **STATIC)
    for ratio in (0.2, 0.6):
        with tango.prune(model, "uniform", retention_ratio=ratio):
            model.generate(**inputs, **GREEDY, **STATIC)
    assert model._previous_max_cache_length == lengths[0] > lengths[2] > lengths[1]
    model.generate(**stock, **GREEDY, **STATIC)
    assert lengths[3] == lengths[0]


def test_nothing_remains_where_nothing_was() -> None:
    model, inputs = build("llava_onevision")
    with tango.prune(model, "uniform", retention_ratio=0.4):
        model.generate(**inputs, **GREEDY, **STATIC)
    assert not [value for value in vars(model).values() if "Cache" in type(value).__name__]
    assert not hasattr(model, "_previous_max_cache_length")


def cache_argument(model: Any) -> str:
    """transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


class TestTheCallersOwnCache:
    """One static cache for several conversations: `reset` empties it, and what it held is forgotten."""

    @pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
    def test_after_a_reset_it_takes_any_prompt(self, name: str) -> None:
        model, inputs = build(name)
        text = {"input_ids": torch.tensor([tiny.prompt("Hello there, ")])}
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=300)
        key = cache_argument(model)
        expected_text = model.generate(**text, **GREEDY)
        with tango.prune(model, "uniform", retention_ratio=0.4):
            expected = model.generate(**inputs, **GREEDY)
            assert torch.equal(model.generate(**inputs, **GREEDY, **{key: cache}), expected)
            cache.reset()
            first = model.generate(**text, **GREEDY, **{key: cache})
            assert torch.equal(first, expected_text)
            going_on = {"input_ids": torch.cat([first, text["input_ids"]], 1)}
            assert torch.equal(
                model.generate(**going_on, **GREEDY, **{key: cache}), model.generate(**going_on, **GREEDY)
            )
            cache.reset()
            assert torch.equal(model.generate(**inputs, **GREEDY, **{key: cache}), expected)

    def test_without_one_another_prompt_is_refused(self) -> None:
        model, inputs = build("llava_onevision")
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=300)
        key = cache_argument(model)
        with tango.prune(model, "uniform", retention_ratio=0.4):
            model.generate(**inputs, **GREEDY, **{key: cache})
            with pytest.raises(tango.TangoError, match="holds a pruned prompt"):
                model.generate(**{"input_ids": torch.tensor([tiny.prompt("Hello")])}, **GREEDY, **{key: cache})
