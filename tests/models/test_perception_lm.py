"""What is PerceptionLM's own: queries and keys of timm's tower, with and without a CLS token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tango
from tango.containers import ALL_SIGNALS, Signal
from tango.methods import KeepAllPruner
from tango.models import adapter_class, frame_batches
from tango.profiling import StageTimer
from tests import tiny
from tests.families import Video, for_stock, perception_lm
from tests.runtime import test_waits

pytest.importorskip("timm", reason="PerceptionLM's tower needs timm")

GREEDY = {"do_sample": False, "max_new_tokens": 4}
ROWS = (("Look: ", Video(5, 1), " What?"), ("And what is in this one? ", Video(5, 2), " Tell me."))
N = 16


def attention_weights(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """What timm's last block computes where it may not use the fused kernel: (frames, heads, prefixed, prefixed)."""
    attention, seen = model.model.vision_tower.timm_model.blocks[-1].attn, []
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model.model.vision_tower(frames)
    hook.remove()
    attention.fused_attn = True
    return seen[0]


@torch.no_grad()
@pytest.mark.parametrize("make", [perception_lm.model, perception_lm.without_cls], ids=["CLS", "no CLS"])
def test_features_and_signals_are_those_of_timm(make: Any) -> None:
    model, given = make(), perception_lm.inputs(*ROWS)
    pixels = given["pixel_values_videos"]
    weights, prefix = attention_weights(model, pixels.flatten(0, 1)), int(model.config.vision_use_cls_token)
    features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    hidden = model.model.vision_tower(pixels.flatten(0, 1)).last_hidden_state

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x[:, prefix:].view(-1, 1, 8, 8), 2).flatten(1)

    expected = {"attn": pooled(weights.mean((1, 2)))}
    if prefix:
        expected["p-attn"] = pooled(weights.mean(1)[:, 0])
    wants = ALL_SIGNALS & ~Signal.TEXT
    for name, saliency in expected.items():
        videos = adapter_class("perception_lm")(model, saliency=name).encode_videos(given, wants, StageTimer()).videos
        torch.testing.assert_close(torch.cat([v.features for v in videos]), features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.cat([v.saliency for v in videos]), saliency, rtol=1e-4, atol=1e-6)
        assert all(v.keys is not None and v.keys.shape[:2] == (5, N) for v in videos)
        if prefix:
            embeds = torch.cat([v.frame_embeds for v in videos if v.frame_embeds is not None])
            torch.testing.assert_close(embeds, hidden[:, 0], rtol=1e-4, atol=1e-4)
        else:
            assert all(v.frame_embeds is None for v in videos)
    mean = adapter_class("perception_lm")(model).encode_videos(given, wants, StageTimer()).videos
    assert all(v.saliency is not None and (v.saliency > 0).all() for v in mean)


@torch.no_grad()
def test_results_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = perception_lm.model(), perception_lm.inputs(*ROWS)

    def encode() -> Any:
        return adapter_class("perception_lm")(model).encode_videos(given, ALL_SIGNALS, StageTimer()).videos

    whole, calls = encode(), []
    monkeypatch.setattr(frame_batches, "CPU_BYTES", 4 * 64 * 16 * 32 * 4)  # four frames of 64 patches
    tower = model.model.vision_tower.timm_model
    hook = tower.patch_embed.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    cut = encode()
    hook.remove()
    assert calls == [4, 4, 2]
    for a, b in zip(whole, cut, strict=True):
        for field in ("features", *ALL_SIGNALS.fields):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_tower_without_cls_is_pruned_as_stock_encodes_it() -> None:
    model, given = perception_lm.without_cls(), perception_lm.inputs(*ROWS)
    expected = model.generate(**for_stock(given), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        model.generate(**given, **GREEDY)
        assert pruning.stats is not None
        assert all(0 < video.tokens_after < 5 * N for video in pruning.stats.videos)
    with pytest.raises(tango.MissingSignalError, match="needs frame embeddings, which this tower without a CLS token"):
        adapter_class("perception_lm")(model).check(Signal.FRAME_EMBEDS, "a method")


@pytest.mark.usefixtures("unchecked_annotations")  # the checks read values
@pytest.mark.parametrize("method", ["uniform", "tango"])
def test_the_host_does_not_wait_between_tower_and_prefill(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """But for Tango's similarities, which cut the video into segments."""
    monkeypatch.setattr(test_waits, "made", lambda _name: (perception_lm.model(), perception_lm.inputs(ROWS[0])))
    before, after = test_waits.waits("perception_lm", method)
    assert before == []
    assert len(after) == int(method == "tango"), after


def test_towers_that_do_not_fit_are_refused() -> None:
    for change, words in (
        ({"vision_use_cls_token": False}, "with 0 token before square grids that 2 divides, got Eva with 1 before 8"),
        ({"projector_pooling_ratio": 3}, "that 3 divides"),
    ):
        with pytest.raises(tango.UnsupportedModelError, match=words):
            tango.prune(perception_lm.model(**change), "uniform", retention_ratio=0.5)
    with pytest.raises(tango.OptionError, match="must be 'contiguous' or 'kept'"):
        tango.prune(perception_lm.model(), "uniform", retention_ratio=0.5, positions="correct")


def test_sizes_come_from_the_config_or_from_the_architectures_name() -> None:
    family, config = adapter_class("perception_lm"), perception_lm.model().config
    assert family.tokens_per_step(config) == N
    config.vision_config.model_args = {"embed_dim": 1024}
    assert family.tokens_per_step(config) == 256
    assert family.num_video_tokens(config, 32) == 32 * 256


def test_a_checkpoint_with_transformers_own_processor(tmp_path: Path) -> None:
    """It gets the frames of Tango's reader, and no second BOS token is written beside the template's."""
    pytest.importorskip("torchvision")
    from transformers import (
        PerceptionLMImageProcessor,
        PerceptionLMProcessor,
        PerceptionLMVideoProcessor,
        PreTrainedTokenizerFast,
    )

    perception_lm.model().save_pretrained(tmp_path)
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|endoftext|>", extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )  # fmt: skip
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }} {% for p in m['content'] %}{% if p['type'] == 'video' %}"
        "<video>{% else %}{{ p['text'] }}{% endif %}{% endfor %} assistant {% endfor %}"
    )
    size = {"height": 56, "width": 56}
    PerceptionLMProcessor(
        video_processor=PerceptionLMVideoProcessor(size=size), tokenizer=tokens, chat_template=template, patch_size=7,
        image_processor=PerceptionLMImageProcessor(tile_size=56), pooling_ratio=2,
    ).save_pretrained(tmp_path)  # fmt: skip
    model, processor = tango.load(tmp_path, dtype="float32", device="cpu")
    frames = np.random.default_rng(0).integers(0, 255, (8, 60, 80, 3), dtype=np.uint8)
    given = tango.prepare(processor, frames, "What?", num_frames=4, fps=2.0)
    assert given["pixel_values_videos"].shape == (1, 4, 3, 56, 56)
    text = processor.decode(given["input_ids"][0])
    assert text == "<|im_start|>user " + "<video>" * (4 * N) + "What? assistant "
    [times] = given["video_timestamps_s"]
    assert len(times) == 4
    expected = model.generate(**for_stock(dict(given)), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        answer = tango.answer(model, processor, frames, "What?", num_frames=4, fps=2.0, max_new_tokens=3)
        assert pruning.stats is not None
        assert pruning.stats.tokens_before == 4 * N
        video = tango.encode(model, processor, frames, num_frames=4, fps=2.0)
        assert tango.answer(model, processor, video, "What?", max_new_tokens=3) == answer
