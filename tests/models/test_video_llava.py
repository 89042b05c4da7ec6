"""What is Video-LLaVA's own: the CLS token of every frame, which stays, and the signals of its video tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tango
from tango.containers import ALL_SIGNALS
from tango.methods import KeepAllPruner, build_layer_pruner
from tango.models import adapter_class
from tango.profiling import StageTimer
from tests import tiny
from tests.families import Video, for_stock, video_llava
from tests.runtime import test_waits

GREEDY = {"do_sample": False, "max_new_tokens": 4}
ROWS = (("Look: ", Video(5, 1), " What?"), ("And what is in this one? ", Video(5, 2), " Tell me."))
N = 64


@pytest.fixture(scope="module")
def model() -> Any:
    return video_llava.model()


@torch.no_grad()
@pytest.mark.parametrize("method", ["tango", "uniform", "fewer-frames"])
def test_the_cls_token_of_every_frame_stays(model: Any, method: str) -> None:
    """Between the kept tokens, in order, with the embeddings of stock code."""
    given = video_llava.inputs(*ROWS)
    features = model.model.get_video_features(
        given["pixel_values_videos"], return_dict=True
    ).pooler_output  # (10, 65, D)
    with tango.prune(model, method, retention_ratio=0.25) as pruning:
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
        stats = pruning.stats
    assert stats is not None
    assert [video.tokens_before for video in stats.videos] == [5 * N] * 2
    kept = [video.tokens_after for video in stats.videos]
    lost = [a - b for a, b in zip(stats.prompt_before, stats.prompt_after, strict=True)]
    assert lost == [5 * N - n for n in kept]
    video = model.config.video_token_id
    for row in range(2):
        own = features[5 * row : 5 * row + 5]
        columns = short.kept[row][short.is_video[row]]
        places = columns - int((given["input_ids"][row] == video).nonzero()[0])  # among the row's placeholders
        assert len(places) == kept[row] + 5
        assert (places.diff() > 0).all()
        assert set(range(0, 5 * (N + 1), N + 1)) <= set(places.tolist())
        embeds = short.inputs_embeds[row][short.is_video[row]]
        is_cls = places % (N + 1) == 0
        torch.testing.assert_close(embeds[is_cls], own[:, 0], rtol=1e-4, atol=1e-4)
        if method == "uniform":  # which merges nothing
            torch.testing.assert_close(embeds, own.flatten(0, 1)[places], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_signals_are_those_of_the_last_used_block_of_the_video_tower(model: Any) -> None:
    other = video_llava.model()
    other.set_attn_implementation("eager")
    given = video_llava.inputs(*ROWS)
    frames = given["pixel_values_videos"].flatten(0, 1)
    output = other.model.video_tower(frames, output_attentions=True, output_hidden_states=True)
    weights = output.attentions[-2].mean(1)  # (frames, 65, 65)
    assert not torch.equal(other.model.image_tower(frames).last_hidden_state, output.last_hidden_state)
    for name, expected in {"p-attn": weights[:, 0], "attn": weights.mean(1)}.items():
        adapter = adapter_class("video_llava")(model, saliency=name)
        videos = adapter.encode_videos(given, ALL_SIGNALS, StageTimer()).videos
        saliency = torch.cat([v.saliency for v in videos if v.saliency is not None])
        torch.testing.assert_close(saliency, expected[:, 1:], rtol=1e-4, atol=1e-6)
        assert all(v.keys is not None and v.keys.shape == (5, N, 8) and v.grid == (8, 8) for v in videos)


@torch.no_grad()
def test_layer_pruners_may_drop_cls_tokens_and_gradients_reach_the_projector(model: Any) -> None:
    given = video_llava.inputs(*ROWS)
    inside = build_layer_pruner("fastv", layer=2, retention_ratio=0.5)
    with tango.prune(model, KeepAllPruner(), layer_pruner=inside) as pruning:
        model.generate(**given, **GREEDY)
        assert pruning.stats is not None
        assert pruning.stats.layer is not None
        assert pruning.stats.layer.tokens[0] == 2 * 5 * (N + 1)
    with torch.enable_grad(), tango.prune(model, "uniform", retention_ratio=0.25):
        labels = given["input_ids"].masked_fill(given["input_ids"] == model.config.video_token_id, -100)
        model(**given, labels=labels).loss.backward()
    gradient = model.model.multi_modal_projector.linear_1.weight.grad
    assert float(gradient.abs().max()) > 0
    model.zero_grad()


@torch.no_grad()
def test_kept_positions_count_cls_tokens(model: Any) -> None:
    given = video_llava.inputs(ROWS[0])
    with tango.prune(model, "uniform", retention_ratio=0.25, positions="kept") as pruning:
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    assert torch.equal(short.position_ids, short.kept)


@pytest.mark.usefixtures("unchecked_annotations")  # the checks read values
@pytest.mark.parametrize("method", ["uniform", "tango"])
def test_the_host_does_not_wait_between_tower_and_prefill(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """But for Tango's similarities, which cut the video into segments."""
    monkeypatch.setattr(test_waits, "made", lambda _name: (video_llava.model(), video_llava.inputs(ROWS[0])))
    before, after = test_waits.waits("video_llava", method)
    assert before == []
    assert len(after) == int(method == "tango"), after


def test_other_configurations_are_refused() -> None:
    for settings, words in (
        ({"vision_feature_select_strategy": "full"}, "strategy 'default', got -2 with 'full'"),
        ({"vision_feature_layer": [-2, -1]}, "one vision_feature_layer of 3"),
    ):
        with pytest.raises(tango.UnsupportedModelError, match=words):
            tango.prune(video_llava.model(**settings), "tango")


def test_a_checkpoint_with_transformers_own_processor(tmp_path: Path) -> None:
    """It gets the frames of Tango's reader, and a second BOS token is not written."""
    pytest.importorskip("torchvision")
    from transformers import (
        PreTrainedTokenizerFast,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )
    from transformers.tokenization_utils_base import AddedToken

    video_llava.model().save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token=AddedToken("<|endoftext|>"),
    )  # fmt: skip
    template = (
        "{% for m in messages %}{{ bos_token }}USER: {% for p in m['content'] %}{% if p['type'] == 'video' %}<video>\n"
        "{% else %}{{ p['text'] }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}"
    )
    VideoLlavaProcessor(
        video_processor=VideoLlavaVideoProcessor(**size), image_processor=VideoLlavaImageProcessor(**size),
        tokenizer=tokens, chat_template=template, patch_size=7,
    ).save_pretrained(tmp_path)  # fmt: skip
    model, processor = tango.load(tmp_path, dtype="float32", device="cpu")
    assert processor.default_num_frames == 8
    frames = np.random.default_rng(0).integers(0, 255, (16, 60, 80, 3), dtype=np.uint8)
    given = tango.prepare(processor, frames, "What?", num_frames=8, fps=2.0)
    assert given["pixel_values_videos"].shape == (1, 8, 3, 56, 56)
    assert int((given["input_ids"] == model.config.video_token_id).sum()) == 8 * (N + 1)
    assert processor.decode(given["input_ids"][0]).replace("<video>", "") == "<|im_start|>USER: \nWhat? ASSISTANT:"
    [times] = given["video_timestamps_s"]
    assert len(times) == 8
    expected = model.generate(**for_stock(dict(given)), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        answer = tango.answer(model, processor, frames, "What?", num_frames=8, fps=2.0, max_new_tokens=3)
        assert pruning.stats is not None
        assert pruning.stats.tokens_before == 8 * N
        video = tango.encode(model, processor, frames, num_frames=8, fps=2.0)
        assert tango.answer(model, processor, video, "What?", max_new_tokens=3) == answer
