"""LLaVA-OneVision's class with a DINOv2 tower, whose CLS token the features leave out, and a Llama decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import tango
from tango.containers import ALL_SIGNALS, VisualTokens
from tango.errors import CheckpointError
from tango.files import write_json
from tango.methods import KeepAllPruner
from tango.models import adapter_class, load
from tango.profiling import StageTimer
from tests import tiny
from tests.models.test_loading import video

GREEDY = {"do_sample": False, "max_new_tokens": 4}
STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
N = 16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llava_onevision_dinov2()


@torch.no_grad()
def encode(model: Any, saliency: str) -> VisualTokens:
    adapter = adapter_class("llava_onevision")(model, saliency=saliency)
    return adapter.encode_videos(tiny.one_video(), ALL_SIGNALS, StageTimer()).videos[0]


def pooled(x: Tensor) -> Tensor:
    """(T, 64, C) -> (T, 16, C), bilinear."""
    return F.interpolate(x.unflatten(1, (8, 8)).permute(0, 3, 1, 2), size=(4, 4), mode="bilinear").flatten(2).mT


@torch.no_grad()
def test_features_and_signals_are_those_of_stock_and_of_eager_attention(model: Any) -> None:
    """Saliency against the attention that the last block returns: the row of CLS, and the mean over all rows."""
    eager = tiny.llava_onevision_dinov2()
    eager.set_attn_implementation("eager")
    frames = tiny.one_video()["pixel_values_videos"]
    output = eager.model.vision_tower(frames[0], output_attentions=True, output_hidden_states=True)
    weights = output.attentions[-1].mean(1)  # (T, 65, 65)
    expected = eager.model.get_video_features(frames, return_dict=True).pooler_output
    for name, received in {"p-attn": weights[:, 0], "attn": weights.mean(1)}.items():
        tokens = encode(model, name)
        torch.testing.assert_close(
            tokens.features.flatten(0, 1), expected.flatten(0, -2)[: 6 * N], rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(tokens.saliency, pooled(received[:, 1:, None])[..., 0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(tokens.frame_embeds, output.hidden_states[-1][:, 0], rtol=1e-4, atol=1e-4)
        assert tokens.keys is not None
        assert tokens.keys.shape == (6, N, 8)


def test_the_familys_sinks_are_not_those_of_another_tower() -> None:
    """They were found in SigLIP's 14 x 14 grid."""
    model = tiny.llava_onevision_dinov2()
    model.config.vision_config.image_size = 392
    adapter = adapter_class("llava_onevision")(model)
    assert adapter.grid == adapter.sink_grid
    assert adapter._sinks == ()


def test_a_strategy_that_does_not_suit_the_tower_is_refused() -> None:
    model = tiny.llava_onevision_dinov2()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(tango.UnsupportedModelError, match="strategy 'default', got -1 with 'full'"):
        tango.prune(model, "tango")
    model = tiny.llava_onevision()
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(tango.UnsupportedModelError, match="strategy 'full', got -1 with 'default'"):
        tango.prune(model, "tango")


@torch.no_grad()
def test_frames_merge_in_the_tower_with_their_cls_token(model: Any) -> None:
    """Of a still video fewer frames are left, and what they show, and their signals, are what they were."""
    still = {**tiny.one_video(), "pixel_values_videos": tiny.clip(1)[:1].expand(1, 6, -1, -1, -1)}
    adapter = adapter_class("llava_onevision")(model)
    (whole,) = adapter.encode_videos(still, ALL_SIGNALS, StageTimer()).videos
    adapter.tower_merger = tango.EarlyTomFramesMerger(blocks="0")
    adapter.check_merger(adapter.tower_merger)
    (left,) = adapter.encode_videos(still, ALL_SIGNALS, StageTimer()).videos
    assert len(left.features) < 6
    for field in ("features", "saliency", "frame_embeds", "keys"):
        found, expected = getattr(left, field), getattr(whole, field)
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", STATISTICS)
    return folder


@torch.no_grad()
def test_a_checkpoint_is_loaded_with_its_towers_pixel_statistics(checkpoint: Path, tmp_path: Path) -> None:
    """Videos are resized and normalised as stock does it; a picture beside the video, too; saved, it loads again."""
    model, processor = load(checkpoint, dtype="float32", device="cpu")
    given = tango.prepare(processor, video(), "What?")
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS.values())
    size = (tiny.IMAGE_SIZE,) * 2
    pixels = F.interpolate(video().frames.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True) / 255
    torch.testing.assert_close(given["pixel_values_videos"][0], (pixels - mean) / deviation)
    assert int((given["input_ids"] == model.config.video_token_id).sum()) == 4 * N + 1
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        assert isinstance(tango.answer(model, processor, video(), "What?", max_new_tokens=3), str)
        assert pruning.stats is not None
        assert pruning.stats.tokens_before == 4 * N
    picture = Image.new("RGB", (100, 80), (200, 10, 60))
    mixed = processor(text="<image>Look<video>What?", videos=video(), images=picture)
    stock = {name: x for name, x in mixed.items() if name not in ("video_timestamps_s", "video_first_equal")}
    expected = model.generate(**stock, **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**mixed, **GREEDY), expected)
    red = (200 / 255 - STATISTICS["image_mean"][0]) / STATISTICS["image_std"][0]
    assert mixed["pixel_values"][0, 0, 0, 5, 5].item() == pytest.approx(red, abs=0.02)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load(tmp_path, dtype="float32", device="cpu")[1]
    assert torch.equal(tango.prepare(again, video(), "What?")["pixel_values_videos"], given["pixel_values_videos"])


def test_a_checkpoint_that_does_not_say_its_pixel_statistics_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    for settings in ({}, {"image_mean": [0.5, 0.5, 0.5]}):
        write_json(tmp_path / "preprocessor_config.json", settings)
        with pytest.raises(CheckpointError, match=r"image_mean and image_std, three numbers each"):
            load(tmp_path, dtype="float32", device="cpu")


def test_the_work_of_the_tower_counts_its_cls_token(model: Any) -> None:
    from tango.lab.bench.roofline import stage_work

    work = stage_work(model, [(6, 8, 8)], visual=96, kept=96, tokens_per_layer=[110] * 4, new_tokens=1)
    block = sum(x.numel() for x in model.model.vision_tower.encoder.layer[0].parameters() if x.dim() > 1)
    kernel = model.model.vision_tower.embeddings.patch_embeddings.projection.weight.numel()
    expected = 2 * kernel * 6 * 64 + 3 * (2 * block * 6 * 65 + 4 * 6 * 65**2 * 32)
    assert work["tower"].flops == expected
