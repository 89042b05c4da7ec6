"""Checkpoints in lmms-lab's layout: loaded directly, and converted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.utils import logging as transformers_logging

import tango
from tango.cli import main
from tango.models import default_num_frames, lmms_lab
from tango.models.processors.llava import CHATML
from tango.toy import tiny_siglip
from tests import lmms_checkpoint, tiny
from tests.models.test_loading import video

KINDS = {
    "onevision": {},
    "tied": {"tied": True},
    "video": {"video": True},
    "bfloat16": {"dtype": torch.bfloat16},
}


@contextmanager
def notes() -> Iterator[list[str]]:
    """Everything that transformers logs at the level of a warning, with its verbosity as users have it."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_warning()
    transformers_logging.add_handler(handler)
    try:
        yield messages
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.set_verbosity(before)


def assert_same_model(model, expected, *, tolerance: float = 1e-5) -> None:
    """Weights, logits of a text, and features of a video."""
    state = model.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name
    ids = torch.tensor([tiny.tokenizer()("What is it about, then?")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, expected(input_ids=ids).logits, rtol=0, atol=tolerance)
        pixels = tiny.clip(1)[None].to(model.dtype)
        ours, stock = (m.model.get_video_features(pixels, return_dict=True).pooler_output for m in (model, expected))
    torch.testing.assert_close(ours, stock, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_loaded_model_equals_its_twin(tmp_path, kind, num_shards):
    expected = lmms_checkpoint.twin(**kind)
    lmms_checkpoint.write(tmp_path, expected, num_shards=num_shards)
    with notes() as said:
        model, _ = tango.load(tmp_path)
    assert all("inv_freq" in note for note in said)  # nothing but what this file is known to hold too much of
    assert type(model) is LlavaOnevisionForConditionalGeneration
    assert not model.training
    assert model.dtype == expected.dtype
    assert_same_model(model, expected)
    rope = model.config.text_config.rope_parameters
    assert rope == {"rope_type": "default", "rope_theta": lmms_checkpoint.ROPE_THETA}
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == kind.get("tied", False)


@pytest.mark.parametrize("kind", ["onevision", "video"])
def test_it_answers_as_its_twin_and_can_be_pruned(tmp_path, kind):
    expected = lmms_checkpoint.twin(**KINDS[kind])
    lmms_checkpoint.write(tmp_path, expected)
    tiny_siglip(expected).save_pretrained(tmp_path / "siglip")
    model, processor = tango.load(tmp_path)
    text = tango.answer(model, processor, video(), "What?", max_new_tokens=8)
    assert text == tango.answer(expected, processor, video(), "What?", max_new_tokens=8)
    with tango.prune(model, "tango", retention_ratio=0.3) as pruning:
        tango.answer(model, processor, video(), "What?", max_new_tokens=2)
    assert pruning.stats.tokens_before == 4 * 16
    assert pruning.stats.tokens_after < 4 * 16


def test_options_of_from_pretrained_reach_it(tmp_path, monkeypatch):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin())
    given: dict = {}
    stock = LlavaOnevisionForConditionalGeneration.from_pretrained

    def spy(*args, **options):
        given.update(options)
        return stock(*args, **options)

    monkeypatch.setattr(LlavaOnevisionForConditionalGeneration, "from_pretrained", spy)
    options = {"device_map": {"": "cpu"}}
    model, _ = tango.load(tmp_path, dtype="bfloat16", attn_implementation="eager", **options)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert {name: given[name] for name in options} == options


def test_a_half_precision_checkpoint_runs_in_float32_on_a_cpu(tmp_path):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin(dtype=torch.float16))
    assert tango.load(tmp_path, device="cpu")[0].dtype == torch.float32


def test_the_tokenizer_gets_placeholders_and_the_chat_template(tmp_path):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin())
    model, processor = tango.load(tmp_path)
    tokenizer = processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [259, 260]
    assert (model.config.image_token_id, model.config.video_token_id) == (259, 260)
    assert tokenizer("a<video><video>b")["input_ids"] == tiny.tokenizer()("a<video><video>b")["input_ids"]
    assert processor.chat_template == CHATML
    assert tokenizer.padding_side == "left"
    assert len(model.get_input_embeddings().weight) == 261


def test_the_originals_tower_is_so400m_without_its_last_block(tmp_path):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin(), vision_config=None)
    vision = lmms_lab.read_config(tmp_path).vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1152, 26, 384, 14)
    assert vision.vision_use_head is False


def test_sizes_of_images_may_be_a_range(tmp_path):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin(), image_grid_pinpoints="(1x1),...,(2x3)")
    sizes = lmms_lab.read_config(tmp_path).image_grid_pinpoints
    assert sizes == [[112 * h, 112 * w] for h, w in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3))]


def test_hub_ids_load_as_well(tmp_path, monkeypatch):
    expected = lmms_checkpoint.twin(video=True)
    lmms_checkpoint.write(tmp_path, expected)
    asked = []

    def download(name, *, revision, **_options):
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model, processor = tango.load("lmms-lab/LLaVA-Video-7B-Qwen2", revision="v1")
    assert asked == [("lmms-lab/LLaVA-Video-7B-Qwen2", "v1")]
    assert (processor.default_num_frames, processor.time_instruction) == (64, "frames")
    assert_same_model(model, expected)


@pytest.mark.parametrize("kind", ["onevision", "tied", "video"])
def test_saving_a_loaded_model_writes_a_normal_checkpoint(tmp_path, kind):
    expected = lmms_checkpoint.twin(**KINDS[kind])
    model, processor = tango.load(lmms_checkpoint.write(tmp_path / "lmms", expected))
    model.save_pretrained(tmp_path / "saved")
    processor.tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = tango.load(tmp_path / "saved")
    assert_same_model(again, expected)


def test_default_number_of_frames_needs_the_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(lmms_checkpoint.fields(lmms_checkpoint.twin(video=True))))
    assert default_num_frames(tmp_path) == 64


UNSUPPORTED = {
    "projector": ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'; expected mlp2x_gelu"),
    "no projector": ({"mm_projector_type": None}, "mm_projector_type None; expected mlp2x_gelu"),
    "tower": ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "mm_vision_tower 'openai/clip"),
    "newlines": ({"mm_newline_position": "frame"}, "mm_newline_position 'frame'; expected one_token or grid"),
    "llm": ({"architectures": ["LlavaMistralForCausalLM"]}, "architectures 'LlavaMistralForCausalLM'"),
    "shape": ({"intermediate_size": 48}, "12 weights are of another shape than config.json says: model.language_model"),
    "missing": ({"num_hidden_layers": 6}, "24 weights are missing: model.language_model.layers.4"),
    "unexpected": ({"num_hidden_layers": 3}, "12 weights are unexpected: model.l"),
    "field": ({"hidden_size": "wide"}, "config.json: .*'hidden_size' expected int"),
    "dtype": ({"torch_dtype": "float17"}, "config.json: .*float17"),
    "sizes": ({"image_grid_pinpoints": "all"}, "image_grid_pinpoints must be a list or like"),
    "rows": ({"vocab_size": 260}, "more than the 260 rows of the embedding"),
}


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_loaded_is_one_clear_line(tmp_path, changes, message):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin(), **changes)
    with pytest.raises(tango.TangoError, match=message) as error:
        tango.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_weight_that_is_not_there_is_named(tmp_path):
    lmms_checkpoint.write(tmp_path, lmms_checkpoint.twin())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.image_newline"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(tango.TangoError, match=r"1 weights are missing: model\.image_newline"):
        tango.load(tmp_path)


def test_other_layouts_are_told_apart(tmp_path):
    tiny.llava_onevision().save_pretrained(tmp_path)
    assert not lmms_lab.is_lmms_lab(tmp_path)
    for text in ("", "[]", '{"model_type": "llava"}'):  # the last is transformers' own first LLaVA
        (tmp_path / "config.json").write_text(text)
        assert not lmms_lab.is_lmms_lab(tmp_path)


def convert(source: Path, target: Path) -> int:
    return main(["convert", str(source), str(target), "--offline"])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_converted_checkpoint_is_a_normal_one(tmp_path, capsys, kind):
    expected = lmms_checkpoint.twin(**kind)
    source, target = lmms_checkpoint.write(tmp_path / "lmms", expected, num_shards=2), tmp_path / "new" / "hf"
    tiny_siglip(expected).save_pretrained(source / "siglip")
    assert convert(source, target) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(f"done: llava_{'video' if 'video' in kind else 'onevision'}, ")
    assert [path.name for path in target.parent.iterdir()] == ["hf"]
    with notes() as said:
        stock, info = LlavaOnevisionForConditionalGeneration.from_pretrained(target, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(target)
        model, processor = tango.load(target)
    assert said == []
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for loaded in (stock.eval(), model):
        assert loaded.dtype == expected.dtype
        assert_same_model(loaded, expected)
        assert loaded.generation_config.repetition_penalty == 1.05
    assert tokenizer("a<video>b")["input_ids"] == tiny.tokenizer()("a<video>b")["input_ids"]
    assert processor.chat_template == CHATML
    direct, other = tango.load(source)
    tango.prune(model, "tango").remove()  # the head came along
    for field in ("image_token_id", "video_token_id", "mm_newline_position", "mm_spatial_pool_mode"):
        assert getattr(model.config, field, None) == getattr(direct.config, field, None)
    assert other.default_num_frames == processor.default_num_frames
    assert tango.answer(model, processor, video(), "What?") == tango.answer(direct, other, video(), "What?")


def test_mistakes_in_converting_leave_nothing_behind(tmp_path, capsys, monkeypatch):
    source = lmms_checkpoint.write(tmp_path / "lmms", lmms_checkpoint.twin())
    tiny.llava_onevision().save_pretrained(tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    wrong = lmms_checkpoint.write(tmp_path / "wrong", lmms_checkpoint.twin(), num_hidden_layers=6)
    capsys.readouterr()
    mistakes = {
        "no checkpoint at": (tmp_path / "nowhere", tmp_path / "new"),
        "no checkpoint in lmms-lab's layout": (tmp_path / "hf", tmp_path / "new"),
        "not an empty folder": (source, tmp_path / "full"),
        "exists already": (source, tmp_path / "full" / "file"),
        "weights are missing": (wrong, tmp_path / "new"),
        "cannot convert": (source, tmp_path / "full" / "file" / "new"),
    }
    before = sorted(tmp_path.rglob("*"))
    for message, (a, b) in mistakes.items():
        assert convert(a, b) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("tango: error: "), message
        assert message in captured.err
        assert sorted(tmp_path.rglob("*")) == before

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(LlavaOnevisionForConditionalGeneration, "save_pretrained", fail)
    assert convert(source, tmp_path / "new") == 2
    assert "disk full" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_may_be_the_target(tmp_path):
    source = lmms_checkpoint.write(tmp_path / "lmms", lmms_checkpoint.twin())
    (tmp_path / "empty").mkdir()
    assert convert(source, tmp_path / "empty") == 0
    assert (tmp_path / "empty" / "model.safetensors").is_file()
