"""Batches of frames: how they are cut, that results do not depend on them, and that memory does not grow with length.

Memory is counted, not measured; see `tests/live_bytes.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tango.containers import Signal
from tango.models import frame_batches as module
from tango.models.base import EncodedVideos, adapter_class, family
from tango.models.frame_batches import FrameRows, frame_batches
from tango.profiling import StageTimer
from tests import tiny, tiny_qwen
from tests.live_bytes import LiveBytes, known_tensors

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WIDTH = 32  # of every tiny tower
QWEN = [("A ", (6, 4, 6), " B ", (4, 8, 6))]  # temporal steps of 24 and of 48 patches
FAMILIES = ("llava_onevision", "llava_video", *tiny_qwen.ALL)


def allow(monkeypatch: pytest.MonkeyPatch, patches: int) -> None:
    """Let a batch have this many patches."""
    monkeypatch.setattr(module, "CPU_BYTES", patches * 16 * WIDTH * 4)


class TestCutting:
    @given(
        patches=st.lists(st.integers(1, 900), max_size=40),
        most=st.integers(1, 4000),
        device=st.sampled_from([CPU, GPU]),
    )
    def test_holds_every_frame_once_and_no_more_than_fits(
        self, patches: list[int], most: int, device: torch.device
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CPU_BYTES" if device == CPU else "GPU_BYTES", most * 16 * 8 * 2)
            batches = list(frame_batches(patches, 8, torch.float16, device))
        assert [i for batch in batches for i in range(batch.start, batch.stop)] == list(range(len(patches)))
        for batch in batches:
            assert sum(patches[batch]) <= max(most, max(patches)) or batch.stop - batch.start == 1

    @given(num_frames=st.integers(1, 3000))
    def test_equal_frames_make_equal_batches(self, num_frames: int) -> None:
        batches = list(frame_batches([729] * num_frames, 1152, torch.bfloat16, GPU))
        sizes = [batch.stop - batch.start for batch in batches]
        assert len(sizes) == -(-num_frames // 39)
        assert len(set(sizes[:-1])) <= 1
        assert sizes[-1] <= sizes[0] <= 39

    def test_a_usual_video_is_one_batch_on_a_gpu(self) -> None:
        assert list(frame_batches([729] * 32, 1152, torch.float16, GPU)) == [slice(0, 32)]

    def test_nothing_is_no_batch(self) -> None:
        assert list(frame_batches([], 1152, torch.float16, GPU)) == []


def test_rows_come_together_in_order() -> None:
    x, y = torch.arange(24.0).view(6, 4), torch.arange(6.0)
    rows = FrameRows(6)
    for batch in (slice(0, 4), slice(4, 5), slice(5, 6)):
        rows.add(x=x[batch], y=y[batch])
    assert torch.equal(rows.get("x"), x)
    assert torch.equal(rows.get("y"), y)
    assert rows.get("z") is None
    assert [part.tolist() for part in rows.split("y", [2, 4])] == [[0, 1], [2, 3, 4, 5]]
    assert rows.split("z", [2, 4]) == [None, None]
    [rest] = rows.rest(["x", "z"])
    assert torch.equal(rest, y)


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """A model, and inputs with several videos of unequal length."""
    if name in tiny_qwen.ALL:
        return tiny_qwen.model(name), tiny_qwen.inputs(name, *QWEN)
    model = getattr(tiny, name)()
    return model, {"pixel_values_videos": [tiny.clip(1, 3), tiny.clip(2, 5)]}


def encode(model: Any, inputs: dict[str, Any], wants: Signal, saliency: Any = "p-attn") -> EncodedVideos:
    adapter = adapter_class(family(model.config))(model, saliency=saliency)
    return adapter.encode_videos(inputs, wants, StageTimer())


def tower_calls(model: Any) -> list[int]:
    """A list that notes the size of every batch from now on: frames, or patches of Qwen-VL."""
    base, calls = model.model, []
    module = base.visual.patch_embed if hasattr(base, "visual") else base.vision_tower.embeddings
    module.register_forward_hook(lambda _m, args, _output: calls.append(len(args[0])))
    return calls


@pytest.mark.filterwarnings("ignore:no video_timestamps_s")
@pytest.mark.parametrize("name", FAMILIES)
class TestResults:
    @staticmethod
    def expected_calls(name: str) -> list[int]:
        """Three frames of the LLaVAs, 96 patches of Qwen-VL, of which the second batch has some of either video."""
        if name not in tiny_qwen.ALL:
            return [3, 3, 2]
        return [96, 96, 96, 48]

    @pytest.mark.parametrize("saliency", ["p-attn", "attn"])
    def test_do_not_depend_on_the_batches(self, monkeypatch: pytest.MonkeyPatch, name: str, saliency: str) -> None:
        model, inputs = build(name)
        wants = Signal.SALIENCY | Signal.FRAME_EMBEDS | Signal.KEYS
        calls = tower_calls(model)
        with torch.no_grad():
            whole = encode(model, inputs, wants, saliency)
            assert len(calls) == 1
            calls.clear()
            allow(monkeypatch, 96 if name in tiny_qwen.ALL else 3 * 64)
            cut = encode(model, inputs, wants, saliency)
        assert calls == self.expected_calls(name)
        for a, b in zip(whole.videos, cut.videos, strict=True):
            for field in ("features", "saliency", "frame_embeds", "keys"):
                x, y = getattr(a, field), getattr(b, field)
                assert (x is None) == (y is None)
                if x is not None:
                    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-6)
            assert (a.grid, a.timestamps_s.tolist()) == (b.grid, b.timestamps_s.tolist())
        torch.testing.assert_close(cut.extras, whole.extras, rtol=1e-5, atol=1e-6)
        if name in ("qwen3_vl", "qwen3_vl_moe"):
            assert [[x.shape for x in video] for video in cut.extras] == [[(36, 64)] * 2, [(48, 64)] * 2]

    def test_gradients_do_not_depend_on_the_batches(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        model, inputs = build(name)

        def gradients() -> list[Tensor]:
            model.zero_grad()
            videos = encode(model, inputs, Signal.SALIENCY).videos
            sum(video.features.square().sum() for video in videos).backward()
            return [p.grad.clone() for p in model.parameters() if p.grad is not None]

        whole = gradients()
        allow(monkeypatch, 96 if name in tiny_qwen.ALL else 3 * 64)
        cut = gradients()
        assert len(whole) == len(cut) > 10
        assert any(bool(x.abs().sum() > 0) for x in whole)
        for x, y in zip(whole, cut, strict=True):
            torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-4 * max(1.0, float(x.abs().max())))


def small(name: str, num_frames: int, *, depth: int = 2) -> tuple[Any, dict[str, Any]]:
    """A model with a tower of this many blocks, and one video of this many frames or temporal steps."""
    if name in tiny_qwen.ALL:
        windows = {"fullatt_block_indexes": [depth - 1]} if name == "qwen2_5_vl" else {}
        deeper = {"deepstack_visual_indexes": [0]} if name in ("qwen3_vl", "qwen3_vl_moe") else {}
        model = tiny_qwen.model(name, depth=depth, **windows, **deeper)
        return model, tiny_qwen.inputs(name, ("Look", (num_frames, 8, 6)))
    model = getattr(tiny, name)()
    layers = model.model.vision_tower.encoder.layers
    for _ in range(depth - len(layers)):
        layers.append(layers[0])
    return model, {"pixel_values_videos": tiny.clip(1, num_frames)[None]}


@torch.no_grad()
def memory(name: str, num_frames: int, *, depth: int = 2, saliency: str = "p-attn") -> tuple[int, int]:
    """Bytes that stay after encoding, and what the peak was above them."""
    model, inputs = small(name, num_frames, depth=depth)
    wants = Signal.SALIENCY | Signal.FRAME_EMBEDS | Signal.KEYS
    with LiveBytes(known_tensors(model, inputs, vars(model).get("pooling_head"))) as counted:
        encoded = encode(model, inputs, wants, saliency)
        stays = counted.now()
    assert len(encoded.videos[0].features) == num_frames
    return stays, counted.peak - stays


@pytest.mark.filterwarnings("ignore:no video_timestamps_s")
@pytest.mark.parametrize("name", FAMILIES)
class TestMemory:
    @pytest.mark.parametrize("saliency", ["p-attn", "attn"])
    def test_of_the_tower_does_not_grow_with_the_video(
        self, monkeypatch: pytest.MonkeyPatch, name: str, saliency: str
    ) -> None:
        unbounded = [memory(name, T, saliency=saliency) for T in (8, 32)]
        allow(monkeypatch, 4 * (48 if name in tiny_qwen.ALL else 64))
        bounded = [memory(name, T, saliency=saliency) for T in (8, 32)]
        assert unbounded[1][1] > 3.5 * unbounded[0][1]  # the count sees what it is meant to see
        assert bounded[1][1] <= 1.02 * bounded[0][1]
        assert bounded[1][0] <= 1.02 * 4 * bounded[0][0]

    def test_does_not_grow_with_the_depth_of_the_tower(self, name: str) -> None:
        """Nobody collects the hidden states of all blocks. On Python 3.10 a caller holds the first beside the last,
        which shows from the third block on."""
        shallow, deep = (memory(name, 8, depth=depth)[1] for depth in (3, 8))
        assert deep <= 1.02 * shallow
