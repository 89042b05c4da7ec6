"""The work of every stage: against PyTorch's own counter on tiny models, and against numbers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tango
from tango.lab.bench import roofline
from tango.lab.bench.roofline import Ceilings, Work
from tango.models import adapter_class
from tango.ops.llm_shapes import llm_of
from tests import tiny, tiny_qwen
from tests.families import Picture, Video, internvl, smolvlm

MIXED = {"smolvlm": smolvlm, "internvl": internvl}  # modules
FAMILIES = ("llava_onevision", "llava_video", "llava_next_video", *MIXED, *tiny_qwen.ALL)
ODD = (2, 6, 14)  # temporal steps, rows and columns of patches: windows of 4 x 4 do not fill it


def eager(name: str) -> tuple[Any, dict[str, Any], int]:
    """A model whose attention the counter sees, its inputs, and the number of visual tokens."""
    if name in tiny_qwen.ALL:
        model, inputs = tiny_qwen.model(name), tiny_qwen.inputs(name, ("Look: ", ODD, " What?"))
    elif name in MIXED:
        model, inputs = MIXED[name].model(), MIXED[name].inputs(("Look: ", Video(6, 1), Picture(2), " What?"))
    else:
        model = getattr(tiny, name)()
        inputs = {**tiny.one_video()}
        size = model.config.vision_config.image_size
        inputs["pixel_values_videos"] = torch.zeros(1, 6, 3, size, size)
    adapter = adapter_class(model.config)(model)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    adapter.tower(model).set_attn_implementation("eager")
    with torch.no_grad():
        encoded = adapter.encode_videos(inputs, tango.Signal.NONE, tango.profiling.StageTimer())
    return model, inputs, sum(len(video.features.flatten(0, 1)) for video in encoded.videos)


def counted(model: Any, inputs: dict[str, Any]) -> dict[str, int]:
    """FLOPs of tower and projector, and of a prefill of 20 tokens, by PyTorch's counter."""
    adapter = adapter_class(model.config)(model)
    with torch.no_grad(), FlopCounterMode(display=False) as vision:
        adapter.encode_videos(inputs, tango.Signal.NONE, tango.profiling.StageTimer())
    D, S = model.config.get_text_config().hidden_size, 20
    embeds = torch.randn(1, S, D)
    positions = torch.arange(S + 1)[None]
    if getattr(adapter, "positions_are_kept", False):
        positions = positions.expand(3, 1, -1)
    parts = {"inputs_embeds": embeds, "position_ids": positions[..., :S], "use_cache": True}
    with torch.no_grad(), FlopCounterMode(display=False) as prefill:
        states = model.get_decoder()(**parts).last_hidden_state
        model.lm_head(states[:, -1:])
    return {"vision": vision.get_total_flops(), "prefill": prefill.get_total_flops()}


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    model, inputs, visual = eager(name)
    found = counted(model, inputs)
    layers = len(model.get_decoder().layers)
    work = roofline.stage_work(
        model,
        roofline.patch_grids(model, inputs),
        visual=visual,
        kept=visual,
        tokens_per_layer=[20] * layers,
        new_tokens=1,
    )
    seen = work["tower"].flops + (work["project"].flops if "project" in work else 0)
    assert seen == pytest.approx(found["vision"], rel=2e-3)  # rotary tables and positions are products in some releases
    if not llm_of(model.config).delta_layers:  # their chunks are filled up to 64 tokens
        assert work["prefill"].flops == pytest.approx(found["prefill"], rel=2e-3)
    assert ("project" in work) == (name not in tiny_qwen.ALL)
    assert "decoding" not in work


def test_decoding_reads_all_weights_and_the_cache_for_every_token_but_the_first() -> None:
    model, inputs, visual = eager("llava_onevision")
    given = {"visual": visual, "kept": 10, "tokens_per_layer": [20, 20, 15, 15]}
    one, six = (roofline.stage_work(model, roofline.patch_grids(model, inputs), **given, new_tokens=n) for n in (2, 7))
    text, weights = model.config.get_text_config(), sum(p.numel() for p in model.lm_head.parameters())
    weights += sum(p.numel() for p in model.model.language_model.layers.parameters() if p.dim() == 2)
    cache = 2 * 70 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    assert one["decoding"].bytes == 4 * (weights + cache)
    assert one["decoding"].flops == 2 * weights + 4 * 70 * text.hidden_size
    assert six["decoding"] == Work(flops=6 * one["decoding"].flops, bytes=6 * one["decoding"].bytes)
    assert one["prune"] == Work(flops=0, bytes=4 * (visual + 10) * text.hidden_size)


def test_a_floor_is_whichever_takes_longer_and_its_share_of_the_time() -> None:
    ceilings = Ceilings(flops_per_s=1e12, bytes_per_s=1e11)
    assert Work(flops=3 * 10**9, bytes=10**8).floor_ms(ceilings) == pytest.approx(3)
    assert Work(flops=3 * 10**9, bytes=10**9).floor_ms(ceilings) == pytest.approx(10)
    row = {"work": {"tower": {"flops": 3 * 10**9, "bytes": 0}, "decoding": {"flops": 0, "bytes": 10**8}}}
    row["stages_ms"] = {"tower": {"median": 6.0}}
    assert roofline.floors(row, ceilings) == {"tower": (3.0, 0.5), "decoding": (1.0, None)}


def test_ceilings_are_measured_by_known_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which everything takes a millisecond."""
    monkeypatch.setattr(roofline, "time_ms", lambda function, _: (function(), 1.0)[1])
    monkeypatch.setattr(roofline, "_SIDES", {"cpu": 32})
    monkeypatch.setattr(roofline, "_COPIED", {"cpu": 1000})
    found = roofline.measure_ceilings(torch.device("cpu"), torch.float32)
    assert found == Ceilings(flops_per_s=pytest.approx(2 * 32**3 * 1000), bytes_per_s=pytest.approx(2000 * 1000))
