"""What is left of Tango once the prompt has passed: nearly nothing, and nothing that a compiled decoding step minds."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CompileConfig

import tango
from tests import tiny, tiny_qwen

ROOT = Path(tango.__file__).parent
NEW = 6
GREEDY = {"do_sample": False, "max_new_tokens": NEW}
FAMILIES = ("llava_onevision", "llava_video", *tiny_qwen.ALL)
# The instance's `forward`, which looks for a video, and the guard of the embeddings, which lets single tokens pass.
WRAPPER = {"owned.method": 1, "pruning.forward": 1, "owned.__call__": 1}


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """A model that does not end by itself; a least length would be a logits processor, which sees the caller's ids."""
    model, inputs = model_and_inputs(name)
    model.generation_config.eos_token_id = None
    return model, inputs


def model_and_inputs(name: str) -> tuple[Any, dict[str, Any]]:
    if name in tiny_qwen.ALL:
        return tiny_qwen.model(name), tiny_qwen.inputs(name, ("Look: ", tiny_qwen.WIDE, " What?"))
    model = getattr(tiny, name)()
    if name == "llava_onevision":
        return model, tiny.one_video()
    ids = tiny.prompt("Look: ") + [model.config.video_token_id] * 6 * 4 * 5 + tiny.prompt(" What?")
    return model, {**tiny.one_video(), **tiny.batch(ids)}


def calls_per_step(model: Any, inputs: dict[str, Any]) -> list[dict[str, int]]:
    """How often each function of Tango was called from one pass through the model to the next."""
    steps: list[dict[str, int]] = []
    calls: Counter[str] = Counter()

    def note(frame: Any, event: str, _argument: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(ROOT):
            calls[f"{file.stem}.{frame.f_code.co_name}"] += 1

    def end_of_step(*_: Any) -> None:
        steps.append(dict(calls))
        calls.clear()

    handle = model.lm_head.register_forward_hook(end_of_step)
    sys.setprofile(note)
    try:
        model.generate(**inputs, **GREEDY)
    finally:
        sys.setprofile(None)
        handle.remove()
    return steps


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoding_step_calls_the_wrapper_and_the_guard_alone(name: str) -> None:
    model, inputs = build(name)
    with tango.prune(model, "tango", retention_ratio=0.4):
        prompt, leaving, *steps = calls_per_step(model, inputs)
    assert sum(prompt.values()) > 20  # the count sees what it is meant to see
    assert sum(leaving.values()) <= 12  # hooks leave after the prompt's pass, and two times are noted
    assert steps == [WRAPPER] * (NEW - 2)


def test_pruning_inside_the_llm_stays_in_the_layers_from_there_on() -> None:
    """Their caches are shorter than the others', so every step needs masks of their length."""
    model, inputs = build("llava_onevision")
    num_layers = len(model.model.language_model.layers)
    with tango.prune(model, "fastv", layer=1, retention_ratio=0.7):
        *_, step = calls_per_step(model, inputs)
    assert {name: step.pop(name) for name in WRAPPER} == WRAPPER
    assert {name.partition(".")[0] for name in step} == {"layer_prune", "layer_masks", "calls", "placement"}
    assert sum(step.values()) <= 16 + 3 * num_layers


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_decoding_compiles_to_one_graph(name: str) -> None:
    """A static cache and `fullgraph`: one break, such as a call of ours that cannot be traced, would be an error."""
    torch.compiler.reset()
    model, inputs = build(name)
    text = {"input_ids": torch.tensor([tiny.prompt("Hello there")])}
    stock = model.generate(**text, **GREEDY)
    compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiled._compile_all_devices = True  # stock generate compiles on a GPU alone
    static = {"cache_implementation": "static", "compile_config": compiled, **GREEDY}
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with tango.prune(model, "tango", retention_ratio=0.4):
        expected = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, **static), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    assert torch.equal(model.generate(**text, **static), stock)  # and what it compiled does not prune afterwards
