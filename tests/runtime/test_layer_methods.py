"""Intra-LLM methods that work at several layers or look at all of the question, from end to end on tiny models."""

from __future__ import annotations

import pytest
import torch

import tango
from tests import tiny, tiny_qwen
from tests.runtime.test_pruning import GREEDY, new_tokens, one_video, three_videos

# Options for LLMs of four and of three layers; the mean that is asked for.
METHODS = {
    "pyramiddrop": ({}, {}, 0.5),
    "sparsevlm": ({"layer": 1, "second_layer": 2, "third_layer": 3}, None, 0.5),  # three stages need four layers
    "framefusion": ({}, {}, 0.6),
    "prunevid-select": ({"layer": 2}, {"layer": 1}, 0.6),
    "flashvid-select": ({"layer": 2}, {"layer": 1}, 0.6),
}
SELECTING = ("prunevid-select", "flashvid-select")  # at one layer
LAYERS = {
    "pyramiddrop": (1, 2, 3),
    "sparsevlm": (1, 2, 3),
    "framefusion": (1, 2, 3),
    "prunevid-select": (2,),
    "flashvid-select": (2,),
}
DECODING = {"static": {"cache_implementation": "static"}, "no cache": {"use_cache": False}}
ROWS = [("Look: ", tiny_qwen.WIDE, " What?"), ("And in this one here: ", tiny_qwen.TALL, " Tell me more.")]


@pytest.fixture(scope="module")
def model():
    return tiny.llava_onevision()


@pytest.fixture(scope="module")
def qwen():
    return tiny_qwen.model("qwen2_5_vl")


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def generate(model, inputs: dict, name: str, options: dict, **decoding):
    with tango.prune(model, name, retention_ratio=METHODS[name][2], **options) as pruning:
        output = model.generate(**inputs, **GREEDY, **decoding)
    return new_tokens(model, inputs, output), pruning


def check_stats(name: str, pruning, layers: tuple[int, ...], prompts: int, frames: int) -> None:
    stats, mean = pruning.stats, METHODS[name][2]
    inside = stats.layer
    assert (stats.method, stats.retention_ratio, inside.method) == (name, 1.0, name)
    assert inside.layers == layers
    assert list(inside.tokens) == sorted(inside.tokens, reverse=True)
    assert inside.tokens[-1] < inside.tokens[0] == stats.entering_after
    misses = frames if name == "prunevid-select" else prompts  # each frame, or each prompt, is rounded by itself
    assert abs(inside.mean_retention_ratio - mean) <= misses / inside.tokens[0]


def row_alone(inputs: dict, row: int, videos: slice) -> dict:
    attended = inputs["attention_mask"][row].bool()
    single = {key: inputs[key][row : row + 1, attended] for key in ("input_ids", "attention_mask")}
    return {**single, **{key: inputs[key][videos] for key in ("pixel_values_videos", "video_timestamps_s")}}


@pytest.mark.parametrize("decoding", DECODING.values(), ids=DECODING)
def test_a_padded_batch_equals_rows_alone(model, name, decoding):
    options, inputs = METHODS[name][0], three_videos()
    rows, pruning = generate(model, inputs, name, options)
    check_stats(name, pruning, LAYERS[name], prompts=2, frames=21)  # with each video's last newline
    alone = [row_alone(inputs, 0, slice(0, 2)), row_alone(inputs, 1, slice(2, 3))]
    assert rows == [generate(model, single, name, options)[0][0] for single in alone]
    assert rows == generate(model, inputs, name, options, **decoding)[0]


@pytest.mark.parametrize("decoding", DECODING.values(), ids=DECODING)
def test_three_row_positions(qwen, name, decoding):
    options = METHODS[name][1]
    if options is None:
        with pytest.raises(tango.BudgetError, match=r"layer must lie in 1\.\.2 for an LLM of 3 layers, got 16"):
            tango.prune(qwen, name)
        return
    batch = tiny_qwen.inputs("qwen2_5_vl", *ROWS)
    rows, pruning = generate(qwen, batch, name, options)
    check_stats(name, pruning, (1,) if name in SELECTING else (1, 2), prompts=2, frames=5)
    alone = [tiny_qwen.one_row("qwen2_5_vl", batch, ROWS, row) for row in range(len(ROWS))]
    assert rows == [generate(qwen, single, name, options)[0][0] for single in alone]
    assert rows == generate(qwen, batch, name, options, **decoding)[0]


def test_keeping_all_equals_the_model_without_layer_pruning(model, name):
    inputs = one_video()
    with tango.prune(model, "uniform", retention_ratio=1.0), torch.no_grad():
        expected = model(**inputs).logits
    with tango.prune(model, name, retention_ratio=1.0, **METHODS[name][0]), torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_is_dropped_matters(model, name):
    inputs = one_video()
    with tango.prune(model, "uniform", retention_ratio=1.0), torch.no_grad():
        stock = model(**inputs).logits[:, -1]
    with tango.prune(model, name, retention_ratio=METHODS[name][2], **METHODS[name][0]), torch.no_grad():
        assert (model(**inputs).logits[:, -1] - stock).abs().max() > 1e-4


def test_after_a_method_before_the_llm(model):
    inside = tango.build_layer_pruner("prunevid-select", layer=2)
    with tango.prune(model, "uniform", retention_ratio=0.5, layer_pruner=inside) as pruning:
        model.generate(**one_video(), **GREEDY)
    entered, stayed = pruning.stats.layer.tokens
    assert entered == pruning.stats.tokens_after + 1
    assert stayed == 6 * int(0.4 * 8) + 1  # of each frame's 8; and the last newline, a frame of its own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    rows, pruning = generate(tiny.llava_onevision().to(dtype), three_videos(), name, METHODS[name][0])
    assert all(rows)
    check_stats(name, pruning, LAYERS[name], prompts=2, frames=21)


def test_framefusion_is_told_what_ran_through_every_layer(model, monkeypatch):
    pruner = tango.build_layer_pruner("framefusion", merge_threshold=0.0).for_mean(0.6, 4)
    seen: list[tuple[int, ...]] = []
    prune = type(pruner).prune
    monkeypatch.setattr(type(pruner), "prune", lambda self, tokens: seen.append(tokens.counts) or prune(self, tokens))
    with tango.prune(model, pruner) as pruning:
        model(**three_videos())
    tokens = pruning.stats.layer.tokens
    assert [len(counts) for counts in seen] == [1, 1, 2, 2, 3, 3]
    assert [sum(counts[-1] for counts in pair) for pair in (seen[:2], seen[2:4], seen[4:])] == list(tokens[:3])
    assert [counts[: len(seen[0])] for counts in seen[2:]] == [seen[0], seen[1]] * 2
