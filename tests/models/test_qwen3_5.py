"""What the families on Qwen3-VL's tower have of their own: experts, linear attention, no deepstack, checkpoints."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tango
from tango.models.calls import cache_argument, cache_of
from tests import tiny, tiny_qwen
from tests.models.test_qwen3_vl import handed_over
from tests.models.test_qwen_processor import video
from tests.tiny_qwen import STILL, TALL, WIDE

GREEDY = {"do_sample": False, "max_new_tokens": 4}
HYBRID = ("qwen3_5", "qwen3_5_moe")


@pytest.fixture(scope="module", params=tiny_qwen.MORE)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, config and tokenizer: no preprocessor's file, and no template."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_qwen.model(request.param).save_pretrained(folder)
    tiny_qwen.tokenizer().save_pretrained(folder)
    return folder


def test_a_prompt_tells_the_time_of_every_step(checkpoint: Path) -> None:
    model, processor = tango.load(checkpoint)
    inputs = tango.prepare(processor, video(6, seconds=1.5), "What?")
    t, h, w = inputs["video_grid_thw"][0].tolist()
    frame = "<|vision_start|>" + "<|video_pad|>" * (h * w // 4) + "<|vision_end|>"
    seen = "".join(f"<{seconds} seconds>{frame}" for seconds in ("0.8", "3.8", "6.8"))  # the middles of two frames
    assert seen in processor.decode(inputs["input_ids"][0])
    assert [times.tolist() for times in inputs["video_timestamps_s"]] == [[0, 1.5, 3, 4.5, 6, 7.5]]
    assert inputs["pixel_values_videos"].shape == (t * h * w, 3 * 2 * 16 * 16)
    assert model.config.vision_config.patch_size == 16


def test_pixels_are_normalised_by_halves(checkpoint: Path) -> None:
    """Where no file says how: black is -1 and white 1. With CLIP's numbers they would be -1.8 and 2.1."""
    _, processor = tango.load(checkpoint)
    frames = torch.zeros(4, 64, 64, 3, dtype=torch.uint8)
    frames[2:] = 255
    with pytest.warns(UserWarning, match="half a second apart"):
        pixels = tango.prepare(processor, frames, "What?")["pixel_values_videos"].unflatten(0, (2, -1))
    assert pixels[0].unique().tolist() == [-1]
    assert pixels[1].unique().tolist() == [1]


def test_stock_sees_the_same_prompt(checkpoint: Path) -> None:
    """`test_all_tokens_generate_as_the_stock_model` asks stock for tokens; here for what it makes of the prompt."""
    model, processor = tango.load(checkpoint)
    inputs = tango.prepare(processor, video(6, height=120), "What?")
    expected, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    with tango.prune(model, "none") as pruning:
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
    assert torch.equal(short.position_ids[1:], expected)


@pytest.mark.parametrize("family", tiny_qwen.MORE)
def test_a_prompt_with_all_frames_in_one_run_is_refused(family: str) -> None:
    """As a processor without times would write it."""
    model, inputs = tiny_qwen.model(family), tiny_qwen.inputs(family, ("See ", WIDE, " why?"))
    wrong = {**inputs, **tiny.batch(tiny_qwen.prompt("qwen2_vl", "See ", WIDE, " why?"))}
    with (
        tango.prune(model, "uniform", retention_ratio=0.5),
        pytest.raises(ValueError, match=r"a run of 18 placeholders .* but the next image or video .* makes 6"),
    ):
        model.generate(**wrong, **GREEDY)


def test_weights_that_predict_several_tokens_are_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    """Published checkpoints of Qwen3.5 have them, and stock does not load them."""
    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] not in HYBRID:
        pytest.skip("Qwen3-VL has none")
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {"mtp.fc.weight": torch.ones(64, 128), "mtp.layers.0.mlp.up_proj.weight": torch.ones(96, 64)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = tango.load(tmp_path)
    assert not [name for name, _ in model.named_parameters() if "mtp" in name]


def test_the_text_may_say_the_dtype_alone(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    del config["dtype"]
    config["text_config"]["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert tango.load(tmp_path)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("family", HYBRID)
def test_nothing_is_handed_to_linear_layers(family: str) -> None:
    """Stock passes on what it does not know, down to kernels that would refuse it."""
    model = tiny_qwen.model(family)
    inputs = tiny_qwen.inputs(family, ("See ", STILL, " and ", WIDE, "?"), ("A ", TALL, " why?"))
    layer = model.model.language_model.layers[0].linear_attn
    known: list[set[str]] = []
    handle = layer.register_forward_pre_hook(lambda *given: known.append(set(given[2])), with_kwargs=True)
    model.generate(**tiny_qwen.stock(inputs), **GREEDY)
    stock, known = set().union(*known), []
    with tango.prune(model, "tango", retention_ratio=0.5):
        calls = handed_over(model, lambda: model.generate(**inputs, **GREEDY))
    handle.remove()
    assert set().union(*known) <= stock
    assert not [name for call in calls for name in call if "deepstack" in name or "visual" in name]


@pytest.mark.parametrize("family", HYBRID)
def test_pruning_at_a_layer_is_refused_by_name(family: str) -> None:
    model = tiny_qwen.model(family)
    says = rf"does not work with linear attention, which 2 of 4 layers of {family}_text use.*prune pre-LLM"
    for inside in (tango.FastvPruner(layer=2), tango.PyramidDropPruner(layer=1)):
        with pytest.raises(tango.UnsupportedModelError, match=says):
            tango.prune(model, "uniform", retention_ratio=0.5, layer_pruner=inside)


def test_layers_of_a_mixture_that_are_fed_with_features_are_not_pruned() -> None:
    model, inputs = tiny_qwen.model("qwen3_vl_moe"), tiny_qwen.inputs("qwen3_vl_moe", ("See ", WIDE, " why?"))
    with (
        tango.prune(model, "uniform", retention_ratio=0.5, layer_pruner=tango.FastvPruner(layer=1)),
        pytest.raises(tango.UnsupportedModelError, match="feeds layers up to 2"),
    ):
        model.generate(**inputs, **GREEDY)


@torch.no_grad()
@pytest.mark.parametrize("family", HYBRID)
def test_a_conversation_goes_on_in_its_cache(family: str) -> None:
    """The state of linear layers continues where the first answer ended."""
    model, inputs = tiny_qwen.model(family), tiny_qwen.inputs(family, ("See ", WIDE, " why?"))
    more = tiny_qwen.tokenizer()(" And then?", return_tensors="pt")["input_ids"]
    options: dict[str, Any] = {**GREEDY, "min_new_tokens": 4}
    with tango.prune(model, "uniform", retention_ratio=0.5):
        first = model.generate(**inputs, **options, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], dim=1)
        kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, ids.shape[1] - inputs["input_ids"].shape[1]))
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
        expected = model.generate(**longer, **options)
        cache = cache_of(vars(first))
        found = model.generate(**longer, **options, **{cache_argument(model): cache})
    assert torch.equal(found, expected)
