"""A compiled tower: the same results as without, in batches of one size, and nothing left behind.

What runs here is the capture of the graph and its execution by "aot_eager"; kernels and CUDA graphs, which other
backends and modes make of it, need a GPU and are not tested.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tango
from tango.containers import Signal, VisualTokens
from tango.models import frame_batches as module
from tango.models.base import adapter_class, family
from tango.profiling import StageTimer
from tests import tiny, tiny_qwen

pytestmark = pytest.mark.usefixtures("unchecked_annotations")  # the checks cannot be compiled
EVERYTHING = Signal.SALIENCY | Signal.FRAME_EMBEDS | Signal.KEYS
FRAME = (3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
QWEN = [("Look: ", tiny_qwen.WIDE, " What?")]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """No graphs of other tests."""
    torch.compiler.reset()


class Graphs:
    """A backend that counts graphs and notes how many frames they are called with; it runs them as they are."""

    def __init__(self) -> None:
        self.compiled = 0
        self.called: list[int] = []

    def __call__(self, graph: Any, _examples: list[Tensor]) -> Any:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.called += [len(x) for x in args if isinstance(x, Tensor) and x.shape[1:] == FRAME]
            return graph(*args)

        return run


def encode(model: Any, inputs: dict[str, Any], saliency: Any = "p-attn") -> list[VisualTokens]:
    adapter = adapter_class(family(model.config))(model, saliency=saliency)
    with torch.inference_mode():
        return adapter.encode_videos(inputs, EVERYTHING, StageTimer()).videos


def assert_equal(a: list[VisualTokens], b: list[VisualTokens]) -> None:
    for x, y in zip(a, b, strict=True):
        for name in ("features", "saliency", "frame_embeds", "keys"):
            torch.testing.assert_close(getattr(x, name), getattr(y, name), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:no video_timestamps_s")
@pytest.mark.parametrize(("name", "saliency"), [("llava_onevision", "attn"), ("qwen2_5_vl", "p-attn")])
def test_results_are_equal(name: str, saliency: str) -> None:
    if name == "qwen2_5_vl":
        model, inputs = tiny_qwen.model(name), tiny_qwen.inputs(name, *QWEN)
    else:
        model, inputs = tiny.llava_onevision(), {"pixel_values_videos": [tiny.clip(1, 3)]}
    expected = encode(model, inputs, saliency)
    with tango.compile_tower(model, backend="aot_eager"):
        assert_equal(encode(model, inputs, saliency), expected)


@pytest.mark.filterwarnings("ignore:no video_timestamps_s")
def test_siglip_is_one_graph_for_batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny.llava_onevision(), {"pixel_values_videos": [tiny.clip(1, 3), tiny.clip(2, 5)]}
    expected = encode(model, inputs)
    monkeypatch.setattr(module, "CPU_BYTES", 3 * 64 * 16 * 32 * 4)  # three frames of 64 patches
    graphs = Graphs()
    with tango.compile_tower(model, backend=graphs):
        assert_equal(encode(model, inputs), expected)
    assert graphs.compiled == 1
    assert graphs.called == [3, 3, 3]  # the last batch has two frames


def test_of_qwen_the_last_block_is_left_as_it_is() -> None:
    model = tiny_qwen.model("qwen2_5_vl")
    with tango.compile_tower(model, backend="eager"):
        assert ["forward" in vars(block) for block in model.model.visual.blocks] == [True, True, True, False]


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl"])
def test_a_pruned_model_answers_the_same_and_is_restored(name: str) -> None:
    if name == "qwen2_5_vl":
        model, inputs = tiny_qwen.model(name), tiny_qwen.inputs(name, *QWEN)
    else:
        model, inputs = tiny.llava_onevision(), tiny.one_video()
    before = {module_name: set(vars(part)) for module_name, part in model.named_modules()}
    options = {"do_sample": False, "max_new_tokens": 4}
    with tango.prune(model, "uniform"):
        expected, graphs = model.generate(**inputs, **options), Graphs()
        compiled = tango.compile_tower(model, backend=graphs)
        assert torch.equal(model.generate(**inputs, **options), expected)
        assert graphs.compiled > 0
        with pytest.raises(tango.TangoError, match="compiled already"):
            tango.compile_tower(model, backend="eager")
        compiled.remove()
        compiled.remove()
    assert {module_name: set(vars(part)) for module_name, part in model.named_modules()} == before


def test_gradients_are_equal() -> None:
    model = tiny.llava_onevision()

    def gradient() -> Tensor:
        model.zero_grad()
        adapter = adapter_class("llava_onevision")(model)
        inputs = {"pixel_values_videos": [tiny.clip(1, 3)], "video_timestamps_s": [[0.0, 1.0, 2.0]]}
        [video] = adapter.encode_videos(inputs, Signal.SALIENCY, StageTimer()).videos
        video.features.square().sum().backward()
        return model.model.vision_tower.embeddings.patch_embedding.weight.grad

    expected = gradient().clone()
    with tango.compile_tower(model, backend="aot_eager"):
        torch.testing.assert_close(gradient(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_models_that_cannot_have_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tango.UnsupportedModelError, match=r"no adapter for Linear \(model type None\)"):
        tango.compile_tower(torch.nn.Linear(2, 2))
    model = tiny.llava_onevision()
    monkeypatch.setattr(adapter_class("llava_onevision"), "compilable", lambda _model: [])
    with pytest.raises(tango.UnsupportedModelError, match="LLaVA-OneVision adapter does not say what to compile"):
        tango.compile_tower(model)


@pytest.mark.parametrize("family_name", tiny_qwen.FAMILIES)
def test_a_block_of_qwen_is_one_graph_while_the_model_is_pruned(family_name: str) -> None:
    """Windows, too: their lengths are numbers of the host, so nothing breaks the graph."""
    model, backend = tiny_qwen.model(family_name), Graphs()
    inputs = tiny_qwen.inputs(family_name, ("Look: ", (3, 6, 10), " What?"))
    with torch.no_grad(), tango.prune(model, "none") as pruning:
        plain = pruning.adapter.encode_videos(inputs, EVERYTHING, StageTimer()).videos
        for block in model.model.visual.blocks[:-1]:
            block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
        compiled = pruning.adapter.encode_videos(inputs, EVERYTHING, StageTimer()).videos
    for x, y in zip(plain, compiled, strict=True):
        torch.testing.assert_close(x.features, y.features, rtol=1e-5, atol=1e-6)
    assert 0 < backend.compiled < len(model.model.visual.blocks)
