"""Models whose parts lie on several devices, or on the disk until they are needed (`device_map`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import AutoModelForImageTextToText

import tango
from tango.models import adapter_class
from tango.models.placement import device_of, weight_of
from tango.toy import write_checkpoint
from tests import tiny, tiny_qwen
from tests.models import test_llava_video
from tests.pretend_gpu import pretend_gpu

pytestmark = [
    pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules"),
    pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on a device type"),
]
Inputs = dict[str, Any]
GREEDY = {"do_sample": False, "max_new_tokens": 4}
FAMILIES = ("llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl")
LATE = tango.build_layer_pruner("dart", layer=2, retention_ratio=0.5)  # it reads the weights of the final norm
PLANS = {
    "tango": ("tango", {"saliency": "attn"}),
    "cdpruner": ("cdpruner", {}),
    "inside the LLM": ("uniform", {"layer_pruner": LATE}),
}


def made(family: str) -> tuple[Any, Inputs]:
    if family in tiny_qwen.FAMILIES:
        row = ("Look: ", tiny_qwen.TALL, tiny_qwen.STILL, " What?")
        return tiny_qwen.model(family), tiny_qwen.inputs(family, row)
    model = getattr(tiny, family)()
    return model, tiny.one_video() if family == "llava_onevision" else test_llava_video.one_video(model)


def answers(model: Any, inputs: Inputs, keep_all: bool = True) -> dict[str, list[list[int]]]:
    """What the model says, pruned in several ways, and with all tokens kept."""
    found = {}
    for name, (method, options) in PLANS.items():
        with tango.prune(model, method, retention_ratio=0.4, **options):
            found[name] = model.generate(**inputs, **GREEDY).tolist()
    if keep_all:
        with tango.prune(model, "uniform", retention_ratio=1.0):
            found["all tokens"] = model.generate(**inputs, **GREEDY).tolist()
    return found


def parts(family: str, *, tower: Any, llm: Any) -> dict[str, Any]:
    """A device map."""
    if family in tiny_qwen.FAMILIES:
        return {"model.visual": tower, "model.language_model": llm, "lm_head": llm}
    beside = {"model.multi_modal_projector": tower, "model.image_newline": "cpu"}
    return {"model.vision_tower": tower, **beside, "model.language_model": llm, "lm_head": llm}


@pytest.mark.parametrize("where", ["tower", "LLM", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_on_the_disk(family: str, where: str, tmp_path: Path) -> None:
    model, inputs = made(family)
    expected, stock = answers(model, inputs), tiny_qwen.stock(inputs)
    model.save_pretrained(tmp_path / "model")
    device_map: dict[str, Any] = {"": "disk"}
    if where != "all":
        device_map = parts(family, tower="disk" if where == "tower" else "cpu", llm="disk" if where == "LLM" else "cpu")
    offloaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "disk"
    ).eval()
    offloaded.config = model.config  # with what tells LLaVA-Video from LLaVA-OneVision
    vars(offloaded)["pooling_head"] = vars(model).get("pooling_head")
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    assert answers(offloaded, inputs) == expected
    # Stock code gets LLaVA-Video wrong, and cannot read LLaVA-OneVision's newline from the disk.
    if family != "llava_video" and (family, where) != ("llava_onevision", "all"):
        assert offloaded.generate(**stock, **GREEDY).tolist() == expected["all tokens"]


def test_a_checkpoint_is_loaded_and_asked(tmp_path: Path) -> None:
    """The pooling head comes to the device where the tower computes."""
    write_checkpoint(tmp_path / "model", image_size=tiny.IMAGE_SIZE, width=32)
    frames = torch.randint(0, 256, (4, 60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    said = []
    for options in ({}, {"device_map": {"": "disk"}, "offload_folder": tmp_path / "disk"}):
        model, processor = tango.load(tmp_path / "model", device="cpu", **options)
        assert model.pooling_head.device == torch.device("cpu")
        if not options:
            stock = tango.answer(model, processor, frames, "What?", fps=1.0, max_new_tokens=6)
        with tango.prune(model, "tango", retention_ratio=0.3):
            said.append(tango.answer(model, processor, frames, "What?", fps=1.0, max_new_tokens=6))
            video = tango.encode(model, processor, frames, fps=1.0)
            assert tango.answer(model, processor, video, "What?", max_new_tokens=6) == said[0]
        with tango.prune(model, tango.KeepAllPruner()):
            assert tango.answer(model, processor, frames, "What?", fps=1.0, max_new_tokens=6) == stock
    assert said[0] == said[1]


@contextmanager
def spread(model: nn.Module, on_gpu: list[str]) -> Iterator[None]:
    """While entered, these parts lie on the pretended device. As accelerate's hooks do, each brings its inputs there,
    and the model its output to where its input was. Mixing both sides in one operator fails, as it would."""
    with pretend_gpu(nn.ModuleList([model.get_submodule(name) for name in on_gpu])):
        hooked: list[str] = []
        for name, module in model.named_modules():
            mixed = any(part.startswith(f"{name}." if name else "") and part != name for part in on_gpu)
            if mixed or any(name.startswith(f"{part}.") for part in hooked):
                continue  # it holds parts of both sides, or belongs to one that has a hook
            hooked.append(name)
            add_hook_to_module(module, AlignDevicesHook(torch.device("meta" if name in on_gpu else "cpu")))
        add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
        with torch.no_grad(), mock.patch.object(torch, "inference_mode", torch.no_grad):
            yield


# Parts as accelerate makes them. Stock code calls the embeddings by themselves, so they are a part of their own.
SPREADS = {
    "the LLM on another device": [
        *(f"language_model.{part}" for part in ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "layers.2")),
        "language_model.norm",
        "lm_head",
    ],
    "the tower on another device": ["tower"],
    "later layers on another device": ["language_model.layers.2", "language_model.norm", "lm_head"],
    "first layers on another device": ["tower", "language_model.embed_tokens", "language_model.layers.0"],
}


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("names", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_devices(family: str, names: list[str]) -> None:
    model, inputs = made(family)
    expected = answers(model, inputs)
    tower = adapter_class(model.config).tower(model)
    [own] = [name for name, module in model.named_modules() if module is tower]
    full = [own if name == "tower" else name if name == "lm_head" else f"model.{name}" for name in names]
    if "language_model.rotary_emb" in names:  # and all further layers
        full += [f"model.language_model.layers.{i}" for i in range(3, len(model.model.language_model.layers))]
    with spread(model, full):
        assert answers(model, inputs) == expected


def test_where_parts_are(tmp_path: Path) -> None:
    model, _ = made("llava_onevision")
    norm = model.model.language_model.norm.weight.detach().clone()
    assert device_of(model) == torch.device("cpu")
    assert weight_of(model.model.language_model.norm, "weight") is model.model.language_model.norm.weight
    model.save_pretrained(tmp_path / "model")
    offloaded = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk"
    )
    assert offloaded.device.type == "meta"
    assert device_of(offloaded.model.vision_tower) == torch.device("cpu")
    assert torch.equal(weight_of(offloaded.model.language_model.norm, "weight"), norm)
    assert torch.equal(weight_of(offloaded.model, "image_newline"), model.model.image_newline)
