"""How often the host waits for the device in a whole call, from pixels to the first token: real models, real values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import BatchFeature

import tango
from tango.models import adapter_class
from tango.runtime.answering import generate_ids
from tests import tiny, tiny_qwen
from tests.families import Picture, Row, Video, all_families
from tests.models import test_llava_video
from tests.pretend_gpu import OnDevice, PretendGpu, pretend_gpu

pytestmark = pytest.mark.usefixtures("unchecked_annotations")  # the checks read values
QWEN = tiny_qwen.ALL
ROWS: dict[str, Row] = {  # prompts of other families
    "glm4v": ("Look: ", Video(6, 1), Picture(2), " What?"),
    "internvl": ("Look: ", Picture(2), Video(6, 1), " What?"),
    "qwen2_5_omni_thinker": ("Look: ", Video(6, 1), " What?"),
    "smolvlm": ("Look: ", Picture(2), Video(6, 1), " What?"),
    "video_llama_3": ("Look: ", Video(4, 1), " What?"),
}
BY_SHAPE = ("uniform", "none", "downsample", "fewer-frames")  # they read no value
DROPS_FULL_MASKS = Version(transformers.__version__) >= Version("5.20")
Inputs = dict[str, Any]


def qwen(family: str) -> tuple[Any, Inputs]:
    return tiny_qwen.model(family), tiny_qwen.inputs(family, ("Look: ", tiny_qwen.WIDE, tiny_qwen.STILL, " What?"))


def made(name: str) -> tuple[Any, Inputs]:
    if name.endswith(" with repeats"):
        model, inputs = made(name.removesuffix(" with repeats"))
        pixels = inputs["pixel_values_videos"].clone()
        if model.config.model_type in QWEN:
            pixels[24:48] = pixels[:24]  # the second of three temporal steps
            return model, {**inputs, "pixel_values_videos": pixels, "video_first_equal": [[0, 0, 2]]}
        repeated = [0, 1, 0, 1, 4, 4]
        return model, {**inputs, "pixel_values_videos": pixels[:, repeated], "video_first_equal": [repeated]}
    if name in QWEN:
        return qwen(name)
    if name in ROWS:
        family = all_families()[name]
        return family.model(), family.inputs(ROWS[name])
    model = getattr(tiny, name)()
    return model, tiny.one_video() if name == "llava_onevision" else test_llava_video.one_video(model)


def run(model: Any, gpu: PretendGpu, call: Callable[[], Tensor]) -> Tensor:
    """Call, and mark when the tower begins and when the whole decoder has been launched."""
    first = adapter_class(model.config).tower_blocks(model)[0]
    hooks = [
        first.register_forward_pre_hook(lambda *_: gpu.mark("tower")),
        model.get_decoder().register_forward_hook(lambda *_: gpu.mark("launched")),
    ]
    gpu.waits.clear()  # those of `prune`
    with torch.no_grad(), mock.patch.object(torch, "inference_mode", torch.no_grad):
        result = call()
    for hook in hooks:
        hook.remove()
    return result


def waits(name: str, method: str, *, on_device: bool = False, **options: Any) -> tuple[list[str], list[str]]:
    """Waits before the tower, and from there to the launch of the decoder; the tokens are those of a CPU."""
    model, inputs = made(name)
    options = {"retention_ratio": 0.5, **options} if method != "none" else {}
    with tango.prune(model, method, saliency="attn", **options):
        expected = generate_ids(model, BatchFeature(dict(inputs)), max_new_tokens=2)
    with pretend_gpu(model) as gpu, tango.prune(model, method, saliency="attn", **options):
        if on_device:  # as after `inputs.to(model.device)`
            inputs = {name: OnDevice(x) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        found = run(model, gpu, lambda: generate_ids(model, BatchFeature(dict(inputs)), max_new_tokens=2)).cpu()
    assert torch.equal(found, expected)
    return gpu.waits[: gpu.marks["tower"]], gpu.waits[gpu.marks["tower"] : gpu.marks["launched"]]


@pytest.mark.parametrize("name", ["llava_onevision", *QWEN, *ROWS])
@pytest.mark.parametrize("method", ["tango", "tango-paper"])
def test_tango_waits_once_from_pixels_to_the_prefill(name: str, method: str) -> None:
    """For the similarities that cut the video into segments."""
    before, after = waits(name, method)
    assert before == []
    assert len(after) == 1
    assert "methods/tango.py" in after[0]


@pytest.mark.parametrize("name", ["llava_onevision", *tiny_qwen.FAMILIES])
@pytest.mark.parametrize("method", ["flashvid", "flashvid-release"])
@pytest.mark.parametrize("min_segments", [1, 8])
def test_flashvid_waits_once(name: str, method: str, min_segments: int) -> None:
    """For the links between frames, which say how many trees there are."""
    before, after = waits(name, method, min_segments=min_segments)
    assert before == []
    assert len(after) == 1
    assert "methods/flashvid.py" in after[0]


@pytest.mark.parametrize("name", ["llava_onevision", *QWEN, *ROWS])
@pytest.mark.parametrize("method", [*BY_SHAPE, "divprune", "vidcom2", "evs", "v-cast", "cdpruner"])
def test_others_do_not_wait_for_what_is_around_them(name: str, method: str) -> None:
    before, after = waits(name, method)
    assert before == []
    assert all("tango/methods/" in wait or "tango/ops/" in wait for wait in after), after
    assert len(after) == int(method not in BY_SHAPE)  # for one look at whether values are finite


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", ["llava_onevision", *QWEN])
def test_frames_that_are_encoded_once_cost_no_wait(name: str, on_device: bool) -> None:
    before, after = waits(f"{name} with repeats", "uniform", reuse=True, on_device=on_device)
    assert after == []
    assert on_device or before == []


def test_merging_in_the_tower_waits_once_for_a_block_and_once_for_its_groups() -> None:
    before, after = waits("llava_onevision", "uniform", tower=tango.EarlyTomFramesMerger(blocks="0"))
    assert before == []
    assert len(after) == 2
    assert all("methods/earlytom.py" in wait for wait in after)


def test_rows_with_newlines_are_counted_once() -> None:
    """How many rows of a frame are touched is known after the selection alone."""
    before, after = waits("llava_video", "uniform")
    assert before == []
    assert len(after) == 1
    assert "fixed_grid.py" in after[0]


@pytest.mark.parametrize("name", ["llava_onevision", *QWEN, *ROWS])
def test_inputs_on_the_device_are_read_before_the_tower_begins(name: str) -> None:
    before, after = waits(name, "tango", on_device=True)
    assert before
    assert len(after) == 1


def test_what_waits_is_seen() -> None:
    model, inputs = made("llava_onevision")
    with pretend_gpu(model) as gpu, torch.no_grad():
        row = OnDevice(torch.tensor([1.0, 0.0, 2.0]))
        for read in (
            lambda: row.tolist(), lambda: row.cpu(), lambda: row[row > 0], lambda: row.nonzero(),
            lambda: bool(row.any()), lambda: int(row[0]), lambda: torch.repeat_interleave(row.long()),
            lambda: torch.tensor([1, 2], device=row.device), lambda: torch.ones(2).to(row.device),
        ):  # fmt: skip
            count = len(gpu.waits)
            read()
            assert len(gpu.waits) == count + 1
        count = len(gpu.waits)
        _ = row + 1, row.sum(), torch.zeros(3, device=row.device), torch.ones(2).to(row.device, non_blocking=True)
        _ = model.get_input_embeddings()(OnDevice(inputs["input_ids"]))
        assert len(gpu.waits) == count
        with pytest.raises(AssertionError, match="tensors of the host and of the device"):
            _ = row + torch.ones(3)


@pytest.mark.skipif(not DROPS_FULL_MASKS, reason="this transformers hands full masks on")
def test_padded_rows_cost_what_stock_code_reads_of_their_mask() -> None:
    model, inputs = tiny.llava_onevision(), tiny.one_video_per_row()
    with pretend_gpu(model) as gpu, tango.prune(model, "uniform"):
        run(model, gpu, lambda: generate_ids(model, BatchFeature(dict(inputs)), max_new_tokens=1))
    after = gpu.waits[gpu.marks["tower"] : gpu.marks["launched"]]
    assert after
    assert not [wait for wait in after if " at tango/" in wait or "/main/tango/" in wait.split(" < ")[0]]
