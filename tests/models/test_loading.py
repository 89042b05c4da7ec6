"""`tango.load` on checkpoints written by transformers, and the processor it brings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tango
from tango.containers import Video
from tango.models import default_num_frames
from tango.models.processors.llava import preprocess_frames
from tango.toy import write_checkpoint
from tests import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, image_size=tiny.IMAGE_SIZE, width=32)
    return folder


def video(num_frames: int = 4) -> Video:
    generator = torch.Generator().manual_seed(num_frames)
    return Video(
        frames=torch.randint(0, 256, (num_frames, 60, 80, 3), dtype=torch.uint8, generator=generator),
        timestamps_s=torch.arange(num_frames, dtype=torch.float64) / 2,
        frame_indices=tuple(range(num_frames)),
        num_source_frames=num_frames,
        duration_s=num_frames / 2,
        fps=2.0,
        path="clip.mp4",
        backend="pyav",
    )


def test_a_loaded_model_answers(checkpoint):
    model, processor = tango.load(checkpoint)
    assert "pooling_head" not in dict(model.named_modules())
    assert model.pooling_head.width == 32
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning:
        pruned = tango.answer(model, processor, video(), "What?", max_new_tokens=4)
    assert isinstance(pruned, str)
    assert pruning.stats.tokens_before == 4 * 16
    assert pruning.stats.prompt_before == (len(tango.prepare(processor, video(), "What?")["input_ids"][0]),)
    assert isinstance(tango.answer(model, processor, video(), "What?", max_new_tokens=4), str)


def test_all_tokens_answer_as_the_stock_model(checkpoint):
    model, processor = tango.load(checkpoint)
    stock = tango.answer(model, processor, video(), "What?", max_new_tokens=8)
    with tango.prune(model, "tango", retention_ratio=1.0):
        assert tango.answer(model, processor, video(), "What?", max_new_tokens=8) == stock


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_dtype(checkpoint, dtype):
    model, _ = tango.load(checkpoint, dtype=dtype)
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))


def test_a_half_precision_checkpoint_runs_in_float32_on_a_cpu(checkpoint, tmp_path):
    model, processor = tango.load(checkpoint, dtype="float16")
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    assert tango.load(tmp_path, device="cpu")[0].dtype == torch.float32


def test_saving_does_not_write_the_pooling_head(checkpoint, tmp_path):
    model, _ = tango.load(checkpoint)
    model.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert not [key for key in weights.keys() if "pooling_head" in key]  # noqa: SIM118


def test_without_a_head_the_error_offers_attn(checkpoint, tmp_path):
    model, processor = tango.load(checkpoint)
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    headless, processor = tango.load(tmp_path)
    with pytest.raises(tango.MissingSignalError, match="saliency='attn'"):
        tango.prune(headless, "tango")
    with tango.prune(headless, "tango", saliency="attn"):
        tango.answer(headless, processor, video(), "What?", max_new_tokens=2)
    with_head, _ = tango.load(tmp_path, siglip=checkpoint / "siglip")
    tango.prune(with_head, "tango").remove()


def test_flash_attention_falls_back_with_a_note(checkpoint):
    with pytest.warns(UserWarning, match="flash-attn, which is not installed; using sdpa"):
        model, _ = tango.load(checkpoint, attn_implementation="flash_attention_2")
    assert model.config._attn_implementation == "sdpa"


def test_flash_attention_falls_back_on_a_cpu(checkpoint, monkeypatch):
    monkeypatch.setattr("tango.models.loading.find_spec", lambda name: name)
    with pytest.warns(UserWarning, match="needs a GPU, and the model is on the cpu; using sdpa"):
        model, _ = tango.load(checkpoint, attn_implementation="flash_attention_2", device="cpu")
    assert model.config._attn_implementation == "sdpa"


def test_default_number_of_frames_needs_the_config_alone(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    assert default_num_frames(tmp_path) == 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no checkpoint at"),
        (lambda folder: folder, "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{}") and folder, "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}') and folder, "no adapter for"),
    ],
)
def test_wrong_paths_give_one_clear_line(tmp_path, make, message):
    with pytest.raises(tango.TangoError, match=message) as error:
        tango.load(make(tmp_path))
    assert "\n" not in str(error.value)


def test_a_truncated_checkpoint_is_one_clear_line(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes()[: 2000 if file.suffix == ".safetensors" else None])
    with pytest.raises(tango.TangoError, match="cannot load") as error:
        tango.load(tmp_path)
    assert "\n" not in str(error.value)


def test_frames_are_resized_as_pillow_does():
    """The original preprocessing resizes with Pillow's bicubic filter; ours differs by at most one grey level."""
    frames = video(2).frames
    expected = [Image.fromarray(f.numpy()).resize((48, 48), Image.Resampling.BICUBIC) for f in frames]
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in expected])).permute(0, 3, 1, 2)
    ours = (preprocess_frames(frames, 48) + 1) * 127.5
    assert (ours - expected.float()).abs().max() <= 1.01
    assert ours.min() >= 0
    assert ours.max() <= 255.01


def test_a_prompt_with_two_videos_of_unequal_length(checkpoint):
    _, processor = tango.load(checkpoint)
    inputs = processor(text="a <video> b <video> c", videos=[video(4), video(3)])
    ids = inputs["input_ids"][0]
    assert int((ids == tiny.tokenizer().convert_tokens_to_ids("<video>")).sum()) == 4 * 16 + 1 + 3 * 16 + 1
    assert [len(pixels) for pixels in inputs["pixel_values_videos"]] == [4, 3]
    assert [times.tolist() for times in inputs["video_timestamps_s"]] == [[0, 0.5, 1, 1.5], [0, 0.5, 1]]


def test_placeholders_and_videos_must_match(checkpoint):
    _, processor = tango.load(checkpoint)
    with pytest.raises(ValueError, match="has 1 <video>, but 2 videos"):
        processor(text="<video>", videos=[video(), video()])


def test_the_checkpoints_own_chat_template_wins(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "hello {{ messages[0].role }}"}))
    _, processor = tango.load(tmp_path)
    assert processor.apply_chat_template([{"role": "user", "content": "x"}]) == "hello user"
    _, processor = tango.load(checkpoint)
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<video>\n")


def test_the_pooling_head_is_where_the_model_is(checkpoint):
    """Else every call would copy it there, in the middle of a measured stage."""
    model, _ = tango.load(checkpoint, device="meta")
    assert model.device.type == model.pooling_head.folded_probe.device.type == "meta"
