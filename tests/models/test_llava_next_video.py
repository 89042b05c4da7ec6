"""LLaVA-NeXT-Video on the real class with random weights: keep-all is stock, pruning is what its parts say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tango
from tango.containers import ALL_SIGNALS, VisualTokens
from tango.methods import KeepAllPruner, available_layer_pruners, available_pruners, build_layer_pruner
from tango.models import adapter_class, frame_batches, load
from tango.profiling import StageTimer
from tests import tiny

GREEDY = {"do_sample": False, "max_new_tokens": 4}
T, N = 6, 16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.llava_next_video()


def inputs(*rows: tuple[str, int, str]) -> dict[str, Any]:
    """One video a row, of so many frames."""
    video = tiny.tokenizer().convert_tokens_to_ids("<video>")
    encode = tiny.tokenizer()
    ids = [[*encode(a)["input_ids"], *[video] * (n * N), *encode(b)["input_ids"]] for a, n, b in rows]
    clips = [tiny.clip(seed, n) for seed, (_, n, _) in enumerate(rows)]
    same = len({len(clip) for clip in clips}) == 1
    pixels = torch.stack(clips) if same else clips
    times = [[1.5 * i for i in range(n)] for _, n, _ in rows]
    return {**tiny.batch(*ids), "pixel_values_videos": pixels, "video_timestamps_s": times}


def stock(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != "video_timestamps_s"}


ROWS = (("Look: ", T, " What?"), ("And what is in this one? ", T, " Tell me."))


def with_pictures() -> dict[str, Any]:
    """A picture of several tiles before the video."""
    given = inputs(ROWS[0])
    model = tiny.llava_next_video()
    pictures = {"pixel_values": torch.randn(1, 3, 3, 112, 112), "image_sizes": torch.tensor([[100, 224]])}
    with torch.no_grad():
        count = len(model.model.get_image_features(**pictures, return_dict=True).pooler_output[0])
    image = torch.full((1, count), model.config.image_token_id)
    ids = torch.cat([image, given["input_ids"]], dim=1)
    return {**given, **pictures, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: inputs(*ROWS), with_pictures], ids=["batch", "pictures"])
def test_keeping_all_is_stock(model: Any, make: Any) -> None:
    given = make()
    logits, ids = model(**stock(given)).logits, model.generate(**stock(given), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        ours, generated = model(**given).logits, model.generate(**given, **GREEDY)
    seen = given["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], logits[seen], rtol=1e-4, atol=1e-4)
    assert torch.equal(generated, ids)
    assert float(logits[seen].abs().max()) > 0.5


@torch.no_grad()
def encode(model: Any, saliency: str) -> list[VisualTokens]:
    adapter = adapter_class("llava_next_video")(model, saliency=saliency)
    return adapter.encode_videos(inputs(*ROWS), ALL_SIGNALS, StageTimer()).videos


def pooled(x: Tensor) -> Tensor:
    """(T, 64, C) -> (T, 16, C): means of 2 x 2 patches."""
    return x.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1, 2)


@torch.no_grad()
def test_signals_are_those_of_the_last_used_block(model: Any) -> None:
    """Against what eager attention returns: the row of CLS, the mean over rows, and the state of CLS."""
    other = tiny.llava_next_video()
    other.set_attn_implementation("eager")
    frames = torch.cat(list(inputs(*ROWS)["pixel_values_videos"]))
    output = other.model.vision_tower(frames, output_attentions=True, output_hidden_states=True)
    weights = output.attentions[-2].mean(1)  # (frames, 65, 65)
    for name, expected in {"p-attn": weights[:, 0], "attn": weights.mean(1)}.items():
        videos = encode(model, name)
        saliency = torch.cat([video.saliency for video in videos if video.saliency is not None])
        torch.testing.assert_close(saliency, pooled(expected[:, 1:, None])[..., 0], rtol=1e-4, atol=1e-6)
        embeds = torch.cat([video.frame_embeds for video in videos if video.frame_embeds is not None])
        torch.testing.assert_close(embeds, output.hidden_states[-2][:, 0], rtol=1e-4, atol=1e-4)
        assert all(video.keys is not None and video.keys.shape == (T, N, 8) for video in videos)
    expected = other.model.get_video_features(torch.stack([frames[:T], frames[T:]]), return_dict=True).pooler_output
    features = torch.cat([video.features.flatten(0, 1) for video in videos])
    torch.testing.assert_close(features, torch.cat(list(expected)).view(2 * T * N, -1), rtol=1e-4, atol=1e-4)


def test_results_do_not_depend_on_the_batches(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = encode(model, "p-attn"), []
    monkeypatch.setattr(frame_batches, "CPU_BYTES", 5 * 64 * 16 * 32 * 4)  # five frames of 64 patches
    hook = model.model.vision_tower.embeddings.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    cut = encode(model, "p-attn")
    hook.remove()
    assert calls == [4, 4, 4]
    for a, b in zip(whole, cut, strict=True):
        for field in ("features", *ALL_SIGNALS.fields):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("method", available_pruners())
def test_every_method_prunes(model: Any, method: str) -> None:
    """A padded batch equals its rows alone, and what is left fits the prompt."""
    with tango.prune(model, method, retention_ratio=0.25) as pruning:
        batch = model.generate(**inputs(*ROWS), **GREEDY)
        assert pruning.stats is not None
        kept = [video.tokens_after for video in pruning.stats.videos]
        assert all(0 < n < T * N for n in kept)
        saved = [a - b for a, b in zip(pruning.stats.prompt_before, pruning.stats.prompt_after, strict=True)]
        assert saved == [T * N - n for n in kept]
        expected = tiny.new_tokens(model, inputs(*ROWS), batch)
        for i, seed in enumerate((0, 1)):
            alone = {**inputs(ROWS[i]), "pixel_values_videos": tiny.clip(seed)[None]}
            assert tiny.new_tokens(model, alone, model.generate(**alone, **GREEDY)) == [expected[i]]


@torch.no_grad()
def test_the_pruned_prefill_is_what_its_embeddings_give(model: Any) -> None:
    """Without generate: plain decoding of the short prompt, token by token."""
    given = inputs(*ROWS)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        generated = tiny.new_tokens(model, given, model.generate(**given, **GREEDY))
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    assert generated == [tiny.greedy_reference(model, short, row, 4) for row in range(2)]


@torch.no_grad()
def test_layer_pruners_of_one_layer_run_and_keeping_all_changes_nothing(model: Any) -> None:
    given = inputs(*ROWS)
    with tango.prune(model, KeepAllPruner()):
        expected = model(**given).logits
    seen = given["attention_mask"].bool()
    every = [build_layer_pruner(name, layer=2, retention_ratio=1.0) for name in available_layer_pruners()]
    of_one_layer = [pruner for pruner in every if pruner.layers == (2,)]  # the layers of the others do not fit four
    assert len(of_one_layer) >= 5
    for pruner in of_one_layer:
        with tango.prune(model, KeepAllPruner(), layer_pruner=pruner):
            torch.testing.assert_close(model(**given).logits[seen], expected[seen], rtol=1e-4, atol=1e-4)
    inside = build_layer_pruner("fastv", layer=2, retention_ratio=0.5)
    with tango.prune(model, KeepAllPruner(), layer_pruner=inside) as pruning:
        model.generate(**given, **GREEDY)
        assert pruning.stats is not None
        assert pruning.stats.layer is not None
        assert pruning.stats.layer.tokens == (2 * T * N, T * N)


def test_other_configurations_are_refused() -> None:
    for name, value, message in (
        ("vision_feature_select_strategy", "full", "strategy 'default', got -2 with 'full'"),
        ("vision_feature_layer", [-2, -1], "one vision_feature_layer of 3"),
        ("spatial_pool_mode", "max", "'average', got 'max'"),
    ):
        changed = tiny.llava_next_video()
        setattr(changed.config, name, value)
        with pytest.raises(tango.UnsupportedModelError, match=message):
            tango.prune(changed, "tango")


def test_a_checkpoint_with_transformers_own_processor(tmp_path: Path) -> None:
    """The processor gets the frames' indices and rate, and adds their times; a question about frames is answered."""
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    built = tiny.llava_next_video()
    built.save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
    part = "{% if p['type'] == 'video' %}<video>{% else %}{{ p['text'] }}{% endif %}"
    template = "{% for m in messages %}{% for p in m['content'] %}" + part + "{% endfor %}{% endfor %}"
    LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**size),
        image_processor=LlavaNextImageProcessor(**size),
        tokenizer=tiny.tokenizer(),
        chat_template=template,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)
    model, processor = load(tmp_path, dtype="float32", device="cpu")
    frames = np.random.default_rng(0).integers(0, 255, (8, 120, 160, 3), dtype=np.uint8)
    given = tango.prepare(processor, frames, "What?", num_frames=4, fps=2.0)
    assert given["pixel_values_videos"].shape == (1, 4, 3, 112, 112)
    assert int((given["input_ids"] == model.config.video_token_id).sum()) == 4 * N
    [times] = given["video_timestamps_s"]
    assert len(times) == 4
    assert (times.diff() > 0).all()
    expected = model.generate(**stock(given), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        assert isinstance(tango.answer(model, processor, frames, "What?", num_frames=4, fps=2.0, max_new_tokens=3), str)
        assert pruning.stats is not None
        assert pruning.stats.tokens_before == 4 * N


def test_without_torchvision_the_processor_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoProcessor

    def missing(*_args: Any, **_options: Any) -> Any:
        raise ImportError("LlavaNextVideoVideoProcessor requires the Torchvision library")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", missing)
    config = tiny.llava_next_video().config
    with pytest.raises(tango.TangoError, match=r"needs torchvision .*pip install torchvision"):
        adapter_class("llava_next_video").make_processor(tmp_path, config)
