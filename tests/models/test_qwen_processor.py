"""The Qwen processor: patch order, sizes, prompts, and checkpoints loaded with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tango
from tango.containers import Video
from tango.errors import OptionError, UnknownNameError
from tango.models import adapter_class
from tango.models.processors.qwen import CLIP_MEAN, CLIP_STD, Patches, QwenProcessor
from tests import tiny_qwen

PLAIN = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # pixels come out as they went in


def frames(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def video(count: int = 6, height: int = 60, width: int = 80, seconds: float = 0.5) -> Video:
    return Video(
        frames=frames(count, height, width),
        timestamps_s=torch.arange(count, dtype=torch.float64) * seconds,
        frame_indices=tuple(range(count)),
        num_source_frames=count,
        duration_s=count * seconds,
        fps=1 / seconds,
        path="clip.mp4",
        backend="pyav",
    )


@pytest.mark.parametrize("size", [14, 16])
def test_patches_are_in_the_models_order(size):
    """Merge unit by merge unit; within a patch channel, frame, row, column."""
    side = 2 * size
    patches = Patches(size=size, min_pixels=1, **PLAIN)
    clip = frames(4, 2 * side, 3 * side)
    cut, grid = patches.cut(clip)
    assert grid == (2, 4, 6)
    assert cut.shape == (2 * 4 * 6, 3 * 2 * size * size)
    row = 0
    for t in range(2):
        for unit_row in range(2):
            for unit_column in range(3):
                for y in (2 * unit_row, 2 * unit_row + 1):
                    for x in (2 * unit_column, 2 * unit_column + 1):
                        pixels = clip[2 * t : 2 * t + 2, y * size : (y + 1) * size, x * size : (x + 1) * size]
                        expected = pixels.permute(3, 0, 1, 2).flatten().float()
                        torch.testing.assert_close(cut[row], expected, rtol=0, atol=0.01)
                        row += 1


def test_the_video_can_be_put_together_again():
    clip = frames(6, 112, 168)
    cut, (t, h, w) = Patches(size=14, min_pixels=1, **PLAIN).cut(clip)
    x = cut.view(t, h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    x = torch.einsum("tijyxfab->tfiyajxb", x[:, :, :, :, :, 0])  # one channel
    again = x.reshape(2 * t, 14 * h, 14 * w)
    torch.testing.assert_close(again, clip[..., 0].float(), rtol=0, atol=0.01)


def test_patch_order_agrees_with_the_models_patch_embedding():
    """The model reads a patch as (channel, frame, row, column)."""
    model = tiny_qwen.model("qwen2_5_vl")
    cut, _ = Patches(size=14, min_pixels=1).cut(frames(2, 28, 28))
    conv = model.model.visual.patch_embed.proj
    with torch.no_grad():
        expected = conv(cut.view(-1, 3, 2, 14, 14)).flatten(1)
        torch.testing.assert_close(model.model.visual.patch_embed(cut).view(4, -1), expected)


def test_pixels_are_normalised_after_a_resize_like_pillows():
    clip = frames(2, 60, 90)
    patches = Patches(size=14, min_pixels=1, max_pixels=56 * 84)
    cut, grid = patches.cut(clip)
    assert grid == (1, 4, 6)
    resized = [Image.fromarray(f.numpy()).resize((84, 56), Image.Resampling.BICUBIC) for f in clip]
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).float() / 255
    expected = (expected - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    ours = cut.view(2, 3, 2, 2, 3, 2, 14, 14).permute(5, 0, 2, 6, 1, 3, 7, 4).reshape(2, 56, 84, 3)
    assert ((ours - expected).abs() * torch.tensor(CLIP_STD) * 255).max() <= 1.01


def test_an_odd_frame_is_repeated():
    cut, grid = Patches(size=14, min_pixels=1, **PLAIN).cut(frames(3, 28, 28))
    assert grid == (2, 2, 2)
    last = cut[4:].view(4, 3, 2, 196)
    assert torch.equal(last[:, :, 0], last[:, :, 1])


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize(
    ("height", "width"), [(720, 1280), (1280, 720), (448, 448), (360, 640), (60, 80), (10, 1500), (2160, 3840), (5, 5)]
)
def test_frame_sizes(height, width, side):
    """Multiples of a merge unit, within the bounds, with about the aspect ratio of the frame."""
    patches = Patches(size=side // 2, min_pixels=128 * side**2)
    h, w = patches.frame_size(height, width)
    assert h % side == w % side == 0
    assert h * w <= 448 * 448 or h == side or w == side
    assert h * w >= 128 * side**2 or (h + side) * (w + side) > 448 * 448
    if max(height, width) < 4 * min(height, width):
        assert h / w == pytest.approx(height / width, rel=0.25)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(720, 1280, (336, 588)), (448, 448, (448, 448)), (480, 640, (364, 504))]
)
def test_known_frame_sizes(height, width, expected):
    assert Patches(size=14).frame_size(height, width) == expected


def test_extreme_frames_are_refused():
    with pytest.raises(ValueError, match="too narrow"):
        Patches(size=14).frame_size(2, 500)


def processor(family: str, **options) -> QwenProcessor:
    patches = Patches(size=tiny_qwen.PATCH[family], min_pixels=1)
    return QwenProcessor(tiny_qwen.tokenizer(), form=adapter_class(family).form, patches=patches, **options)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_prompt_and_inputs(family):
    make = processor(family)
    first, second = video(6, 56, 84), video(3, 112, 56, seconds=2.0)
    inputs = make(text="a<|vision_start|><|video_pad|><|vision_end|>b<|video_pad|>", videos=[first, second])
    assert make.decode(inputs["input_ids"][0]) == (
        f"a<|vision_start|>{'<|video_pad|>' * 18}<|vision_end|>b{'<|video_pad|>' * 16}"
    )
    assert inputs["video_grid_thw"].tolist() == [[3, 4, 6], [2, 8, 4]]
    assert inputs["pixel_values_videos"].shape == (72 + 64, 3 * 2 * 14 * 14)
    assert [t.tolist() for t in inputs["video_timestamps_s"]] == [[0, 0.5, 1, 1.5, 2, 2.5], [0, 2, 4]]
    assert int((inputs["mm_token_type_ids"] == 2).sum()) == 34
    assert make.num_video_tokens(6, 56, 84) == 18
    if family == "qwen2_5_vl":
        assert inputs["second_per_grid_ts"].tolist() == [1.0, 4.0]
    else:
        assert "second_per_grid_ts" not in inputs


def test_frames_without_times_claim_no_times():
    inputs = processor("qwen2_5_vl")(text="<|video_pad|>", videos=frames(4, 56, 56))
    assert "second_per_grid_ts" not in inputs
    assert "video_timestamps_s" not in inputs


@pytest.mark.parametrize("text", ["<|vision_start|><|video_pad|><|vision_end|>?", "<|video_pad|>?"])
def test_qwen3_writes_the_time_before_each_frame(text):
    make = processor("qwen3_vl")
    inputs = make(text=text, videos=video(3, 64, 64, seconds=1.0))
    frame = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    before, after = text.split("<|video_pad|>")  # the outer marks stay, as in transformers
    assert make.decode(inputs["input_ids"][0]) == f"{before}<0.5 seconds>{frame}<2.0 seconds>{frame}{after}"
    with pytest.warns(UserWarning, match="half a second apart"):
        inputs = make(text=text, videos=frames(4, 64, 64))
    assert make.decode(inputs["input_ids"][0]) == f"{before}<0.2 seconds>{frame}<1.2 seconds>{frame}{after}"
    inputs = make(text=text, videos=video(3, 64, 64, seconds=1.0), vision_marks="flat")
    assert make.decode(inputs["input_ids"][0]) == f"<0.5 seconds>{frame}<2.0 seconds>{frame}?"
    make.vision_marks = "flat"
    assert torch.equal(make(text=text, videos=video(3, 64, 64, seconds=1.0))["input_ids"], inputs["input_ids"])
    with pytest.raises(UnknownNameError, match=r"unknown vision marks 'outer'. Known: flat, nested"):
        make(text=text, videos=video(3, 64, 64), vision_marks="outer")


def test_only_qwen3_marks_frames():
    with pytest.raises(OptionError, match="vision_marks='flat' is for Qwen3-VL"):
        tango.prepare(processor("qwen2_5_vl"), video(), "What?", vision_marks="flat")


def test_placeholders_and_videos_must_match():
    with pytest.raises(ValueError, match="but 2 videos"):
        processor("qwen2_5_vl")(text="<|video_pad|>", videos=[video(), video()])


@pytest.fixture(scope="module", params=tiny_qwen.ALL)
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_qwen.model(request.param).save_pretrained(folder)
    tiny_qwen.tokenizer().save_pretrained(folder)
    return folder


def test_a_loaded_checkpoint_answers(checkpoint):
    model, make = tango.load(checkpoint)
    inputs = tango.prepare(make, video(), "What?")
    t, h, w = inputs["video_grid_thw"][0].tolist()
    assert (t, h % 2, w % 2) == (3, 0, 0)
    assert 128 <= h * w // 4 <= 256
    assert isinstance(tango.answer(model, make, video(), "What?", max_new_tokens=4), str)
    with tango.prune(model, "tango", retention_ratio=0.2) as pruning:
        assert isinstance(tango.answer(model, make, video(), "What?", max_new_tokens=4), str)
    assert pruning.stats.tokens_before == t * h * w // 4
    assert pruning.stats.prompt_before == (inputs["input_ids"].shape[1],)
    assert type(pruning.adapter).num_video_tokens(model.config, 32) >= 16 * h * w // 4


@pytest.mark.parametrize("positions", ["stock", "correct"])
def test_all_tokens_generate_as_the_stock_model(checkpoint, positions):
    """The clip is short enough for stock positions to be right."""
    model, make = tango.load(checkpoint)
    inputs = tango.prepare(make, video(), "What?")
    options = {"max_new_tokens": 8, "do_sample": False}
    stock = model.generate(**tiny_qwen.stock(inputs), **options)
    with tango.prune(model, "tango", retention_ratio=1.0, positions=positions):
        assert torch.equal(model.generate(**inputs, **options), stock)


def test_statistics_and_template_of_the_checkpoint_win(checkpoint, tmp_path):
    _, make = tango.load(checkpoint)
    newest = make.form.frames_carry_time
    assert make.patches.mean == ((0.5,) * 3 if newest else CLIP_MEAN)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Hi?"}]}]
    system = "" if newest else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert make.apply_chat_template(messages, add_generation_prompt=True) == (
        f"{system}<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Hi?<|im_end|>\n<|im_start|>assistant\n"
    )
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "hello"}))
    _, make = tango.load(tmp_path)
    assert (make.patches.mean, make.patches.std) == ((0.1,) * 3, (0.2,) * 3)
    assert make.apply_chat_template(messages) == "hello"
    assert make.default_num_frames == 32
