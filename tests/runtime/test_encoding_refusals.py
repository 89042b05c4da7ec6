"""What an encoded video is refused for: another model, plan, method or state of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tango
from tango.methods import KeepAllPruner
from tests.runtime.test_encoding import GREEDY, QUESTIONS, build, video


def test_intra_llm_methods_are_refused() -> None:
    model, processor = build()
    for plan in (
        tango.Plan.of("fastv", {"layer": 1, "retention_ratio": 0.8}),
        tango.Plan.of("uniform", layer_pruner="fastv-merge", layer_options={"layer": 1}),
    ):
        with tango.prune(model, plan), pytest.raises(tango.OptionError, match=r"looks at the question.*pre-LLM method"):
            tango.encode(model, processor, video())


def test_a_method_that_looks_at_the_question_is_refused() -> None:
    model, processor = build()
    refused = pytest.raises(tango.OptionError, match=r"cdpruner looks at the question.*a method that needs no text")
    with tango.prune(model, "cdpruner"), refused:
        tango.encode(model, processor, video())


def again(model: Any, **options: Any) -> None:
    tango.prune(model, **{"method": "uniform", "retention_ratio": 0.3, **options})


def with_weights_written_anew(model: Any) -> None:
    model.load_state_dict(model.state_dict())
    again(model)


def with_another_layer(model: Any) -> None:
    model.lm_head = nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    again(model)


CHANGES: dict[str, Callable[[Any], None]] = {
    "retention_ratio was 0.3 and is 0.4": lambda model: again(model, retention_ratio=0.4),
    "method was 'uniform' and is 'random'": lambda model: again(model, method="random"),
    "method was 'uniform' and is 'none'": lambda _: None,  # no longer pruned
    "saliency was 'p-attn' and is 'attn'": lambda model: again(model, saliency="attn"),
    "positions was 'contiguous' and is 'kept'": lambda model: again(model, positions="kept"),
    "layer_pruner was None and is 'fastv'": lambda model: again(model, layer_pruner=tango.FastvPruner(layer=1)),
    "dtype was 'torch.float32' and is 'torch.bfloat16'": lambda model: again(model.to(torch.bfloat16)),
    "weights or active adapters changed": with_weights_written_anew,
    "the model's weights": with_another_layer,
}


@pytest.mark.parametrize("says", CHANGES)
def test_another_plan_and_another_state_are_refused(says: str) -> None:
    model, processor = build()
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
    with tango.prune(model, "uniform", retention_ratio=0.3):  # the same plan anew is the same plan
        assert tango.answer(model, processor, encoded, "?", **GREEDY)
    CHANGES[says](model)
    with pytest.raises(tango.TangoError, match=f"{says}.*same plan, or encode the video again"):
        tango.answer(model, processor, encoded, "?", **GREEDY)


def test_autocast_is_another_state() -> None:
    model, processor = build()
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(tango.TangoError, match="autocast was False"):
            tango.answer(model, processor, encoded, "?", **GREEDY)


def test_another_model_is_refused_even_if_it_is_equal() -> None:
    model, processor = build()
    with tango.prune(model, "uniform", retention_ratio=0.3):
        encoded = tango.encode(model, processor, video())
    other, _ = build()
    with tango.prune(other, "uniform", retention_ratio=0.3):
        with pytest.raises(tango.TangoError, match="encoded by another model"):
            tango.answer(other, processor, encoded, "?")
        with pytest.raises(tango.TangoError, match="encoded by another model"):
            other.generate(**tango.prepare(processor, encoded, "?"))


def test_a_model_that_was_not_pruned_when_it_encoded() -> None:
    model, processor = build("llava_video")
    encoded = tango.encode(model, processor, video())
    wanted = tango.answer(model, processor, video(), QUESTIONS[0], **GREEDY)
    assert tango.answer(model, processor, encoded, QUESTIONS[0], **GREEDY) == wanted
    with tango.prune(model, KeepAllPruner()):
        assert tango.answer(model, processor, encoded, QUESTIONS[0], **GREEDY) == wanted
    with tango.prune(model, "uniform"), pytest.raises(tango.TangoError, match="method was 'none' and is 'uniform'"):
        tango.answer(model, processor, encoded, QUESTIONS[0])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT uses older names of transformers'
def test_adapters_of_peft() -> None:
    """They change the LLM, so switching them makes another model of it."""
    peft = pytest.importorskip("peft")
    model, processor = build()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config)
    with tango.prune(wrapped, "uniform", retention_ratio=0.3):
        encoded = tango.encode(wrapped, processor, video())
        wanted = tango.answer(wrapped, processor, video(), QUESTIONS[0], **GREEDY)
        assert tango.answer(wrapped, processor, encoded, QUESTIONS[0], **GREEDY) == wanted
        with wrapped.disable_adapter(), pytest.raises(tango.TangoError, match="active adapters changed"):
            tango.answer(wrapped, processor, encoded, QUESTIONS[0], **GREEDY)
        assert tango.answer(wrapped, processor, encoded, QUESTIONS[0], **GREEDY) == wanted


@dataclass(frozen=True, kw_only=True)
class Learned(tango.UniformPruner):
    weights: str = ""


def test_a_learned_method_bound_anew_may_have_read_other_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, str(tmp_path / "w.safetensors"))
    model, processor = build()
    learned = Learned(retention_ratio=0.3, weights=str(tmp_path / "w.safetensors"))
    with tango.prune(model, learned):
        encoded = tango.encode(model, processor, video())
        tango.answer(model, processor, encoded, "?", **GREEDY)
    with tango.prune(model, learned), pytest.raises(tango.TangoError, match="read its weights anew"):
        tango.answer(model, processor, encoded, "?", **GREEDY)


def test_arguments_that_come_too_late_or_make_no_sense() -> None:
    model, processor = build()
    encoded = tango.encode(model, processor, video())
    with pytest.raises(tango.OptionError, match=r"read when it was encoded; give num_frames, fps to tango\.encode"):
        tango.answer(model, processor, encoded, "?", num_frames=4, fps=2.0)
    for history in ("What?", [("What?",)], [("What?", None)], ["ab"]):
        with pytest.raises(tango.OptionError, match=r"history must hold pairs of texts, \[\(question, answer\)"):
            tango.answer(model, processor, encoded, "?", history=history)  # type: ignore[arg-type]
    with pytest.raises(tango.PromptError, match=r"holds '<\|im_end\|>'"):
        tango.answer(model, processor, encoded, "?", history=[("What?", "A<|im_end|>")])


def test_a_video_that_is_not_finite_is_refused() -> None:
    model, processor = build()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias[3] = torch.nan
    for prefix_cache in (True, False):
        with pytest.raises(tango.TangoError, match="features of video 0 contain NaN"):
            tango.encode(model, processor, video(), prefix_cache=prefix_cache)
