"""`reuse`: frames with the same pixels pass through the tower once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import tango
from tango.containers import Video
from tango.errors import OptionError
from tango.evaluation import MethodConfig
from tango.evaluation.preparation import collate
from tango.models import adapter_class
from tango.models.base import family
from tango.runtime.answering import generate_ids
from tests import tiny, tiny_qwen

FAMILIES = ("llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl")
# Each number is a picture. Repeated ones do not only stand side by side; the last temporal step of two is filled up.
SHOWN = [3, 3, 1, 2, 3, 3, 1, 2, 0]
FRAMES, STEPS = 4, 3  # distinct pictures, and distinct pairs of them


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny model and its own processor."""
    qwen = request.param in tiny_qwen.FAMILIES
    model = tiny_qwen.model(request.param) if qwen else getattr(tiny, request.param)()
    tokenizer = tiny_qwen.tokenizer() if qwen else tiny.tokenizer()
    folder: Path = tmp_path_factory.mktemp("empty")
    return model, adapter_class(family(model.config)).make_processor(folder, model.config, tokenizer)


def video(shown: list[int]) -> Video:
    """A video of these pictures, half a second apart."""
    pictures = torch.randint(0, 256, (max(shown) + 1, 112, 112, 3), generator=torch.Generator().manual_seed(5))
    frames = pictures.to(torch.uint8)[shown]
    return Video(
        frames=frames, timestamps_s=torch.arange(len(shown)) / 2.0, frame_indices=tuple(range(len(shown))),
        num_source_frames=len(shown), duration_s=len(shown) / 2, fps=2.0, path="", backend="",
    )  # fmt: skip


def steps(model: Any, frames: int, steps: int) -> int:
    """What the model counts: frames, or temporal steps of two."""
    return steps if model.config.model_type in tiny_qwen.FAMILIES else frames


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Count the frames, or temporal steps, that enter the tower, call by call."""
    seen: list[int] = []
    qwen = model.config.model_type in tiny_qwen.FAMILIES
    tower = model.model.visual if qwen else model.model.vision_tower.embeddings

    def note(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        grids = kwargs["grid_thw"] if "grid_thw" in kwargs else args[-1]
        seen.append(int(grids[:, 0].sum()) if qwen else len(args[0]))

    handle = tower.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def run(model: Any, inputs: Any, **options: Any) -> tuple[Any, Any, int]:
    """The short prompt, the statistics, and how many frames entered the tower."""
    pruning = tango.prune(model, "tango", retention_ratio=0.3, **options)
    with pruning, counted(model) as seen, torch.inference_mode():
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
    return short, pruning.stats, sum(seen)


def assert_same(a: Any, b: Any) -> None:
    """The same kept tokens at the same places, and features equal up to rounding."""
    for name in ("input_ids", "attention_mask", "is_video", "position_ids"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    torch.testing.assert_close(a.inputs_embeds, b.inputs_embeds, rtol=1e-4, atol=1e-5)


def test_results_are_those_of_encoding_every_frame(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video(SHOWN), "What?")
    expected, stats, entered = run(model, inputs)
    assert entered == sum(v.frames for v in stats.videos) == sum(v.frames_encoded for v in stats.videos)
    assert "encoded" not in str(stats)
    got, stats, entered = run(model, inputs, reuse=True)
    assert_same(got, expected)
    assert entered == steps(model, FRAMES, STEPS)
    assert f", {entered} of {steps(model, 9, 5)} frames encoded" in str(stats)
    assert stats.to_dict()["videos"][0]["frames_encoded"] == entered


def test_a_still_video_of_32_frames_runs_the_tower_for_one(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video([0] * 32), "What?")
    expected, _, _ = run(model, inputs)
    got, stats, entered = run(model, inputs, reuse=True)
    assert_same(got, expected)
    assert (entered, stats.videos[0].frames) == (1, steps(model, 32, 16))


def test_without_repeated_frames_the_bits_are_the_same(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video([0, 1, 2, 3]), "What?")
    expected, _, entered = run(model, inputs)
    got, stats, again = run(model, inputs, reuse=True)
    assert torch.equal(got.inputs_embeds, expected.inputs_embeds)
    assert again == entered == stats.videos[0].frames_encoded


def test_every_video_of_a_batch_is_taken_for_itself(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    rows = [tango.prepare(processor, video(shown), text) for shown, text in ((SHOWN, "What?"), ([2, 2], "Who is it?"))]
    inputs = collate(rows, pad_token_id=0)
    expected, _, _ = run(model, inputs)
    got, stats, entered = run(model, inputs, reuse=True)
    assert_same(got, expected)
    assert [v.frames_encoded for v in stats.videos] == [steps(model, FRAMES, STEPS), 1]
    assert entered == sum(v.frames_encoded for v in stats.videos)


def test_batches_of_frames_change_nothing(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video(SHOWN), "What?")
    expected, _, _ = run(model, inputs)
    monkeypatch.setattr("tango.models.frame_batches.CPU_BYTES", 1)  # a frame at a time
    got, _, entered = run(model, inputs, reuse=True)
    assert_same(got, expected)
    assert entered == steps(model, FRAMES, STEPS)


def test_deeper_layers_get_the_rows_of_all_frames(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video(SHOWN), "What?")
    new = []
    for reuse in (False, True):
        with tango.prune(model, "tango", retention_ratio=0.3, reuse=reuse):
            logits = model(**inputs).logits
        new.append(logits)
    torch.testing.assert_close(new[1], new[0], rtol=1e-3, atol=1e-4)


def test_pixels_that_were_changed_are_noticed(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video(SHOWN), "What?")
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"] + torch.randn(inputs["pixel_values_videos"].shape)
    with pytest.raises(ValueError, match="whose pixels differ; leave it out"):
        run(model, inputs, reuse=True)
    run(model, inputs)  # every frame by itself
    del inputs["video_first_equal"]
    _, stats, entered = run(model, inputs, reuse=True)
    assert entered == stats.videos[0].frames


@pytest.mark.parametrize("given", [[], [[0, 0]], [[1, 1, 0, 0, 0, 0, 0, 0, 0]], [[0, -1, 0, 0, 0, 0, 0, 0, 0]]])
def test_what_does_not_fit_the_videos_is_refused(given: list[list[int]]) -> None:
    model = tiny.llava_onevision()
    inputs = {**tiny.batch(tiny.prompt("A ", 9)), "pixel_values_videos": tiny.clip(1, 9)[None]}
    with pytest.raises(ValueError, match=r"must hold, for each video of \[9\] frames"):
        run(model, {**inputs, "video_first_equal": given, "video_timestamps_s": [list(range(9))]}, reuse=True)


@pytest.mark.filterwarnings("ignore:frames without times")
def test_stock_code_never_sees_the_input(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = tango.prepare(processor, video(SHOWN), "What?")
    assert "video_first_equal" in inputs
    assert generate_ids(model, inputs, max_new_tokens=2).shape[0] == 1
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "A"}]}])
    assert "video_first_equal" not in processor(text=text)
    in_memory = tango.prepare(processor, video(SHOWN).frames, "What?")  # without times, as `video_timestamps_s`
    assert "video_first_equal" not in in_memory


def test_a_compiled_tower_gets_all_frames() -> None:
    model = tiny.llava_onevision()
    still = tiny.clip(1, 6)[:1].expand(6, -1, -1, -1)
    inputs = {**tiny.one_video(), "pixel_values_videos": still[None], "video_first_equal": [[0] * 6]}
    assert run(model, inputs, reuse=True)[2] == 1
    with tango.compile_tower(model, backend="eager"):
        _, stats, _ = run(model, inputs, reuse=True)
    assert stats.videos[0].frames_encoded == 6


def test_gradients_of_all_frames_reach_the_tower() -> None:
    model = tiny.llava_onevision()
    still = tiny.clip(1, 6)[[0, 1, 0, 1, 4, 4]]
    inputs = {**tiny.one_video(), "pixel_values_videos": still[None], "video_first_equal": [[0, 1, 0, 1, 4, 4]]}
    gradients = []
    for reuse in (False, True):
        with tango.prune(model, "tango", retention_ratio=0.3, reuse=reuse):
            model(**inputs).logits.square().sum().backward()
        weight = model.model.vision_tower.embeddings.patch_embedding.weight
        gradients.append(weight.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_it_is_written_down_where_it_is_asked_for() -> None:
    plain = MethodConfig.from_settings({"method": "tango"})
    asked = MethodConfig.from_settings({"method": "tango", "reuse": "on"})
    assert (plain.plan.reuse, asked.plan.reuse) == (False, True)
    assert "reuse" not in plain.to_dict()
    assert asked.to_dict()["reuse"] is True
    assert asked.label == f"{plain.label}-reuse"
    assert MethodConfig(**asked.to_dict()).plan == asked.plan


@pytest.mark.parametrize("method", ["none", tango.KeepAllPruner()], ids=["name", "pruner"])
def test_it_is_refused_where_all_tokens_are_kept(method: Any) -> None:
    with pytest.raises(OptionError, match="reuse"):
        tango.prune(tiny.llava_onevision(), method, reuse=True)
