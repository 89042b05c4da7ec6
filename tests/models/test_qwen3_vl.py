"""What only Qwen3-VL has: frames with their time as text before them, and features for deeper layers."""

from __future__ import annotations

import pytest
import torch

import tango
from tango.containers import PrunedTokens
from tango.methods.uniform import UniformPruner
from tango.models.base import adapter_class
from tests import tiny_qwen
from tests.runtime.test_encoding import processor_of, video
from tests.tiny_qwen import STILL, TALL, WIDE

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model():
    return tiny_qwen.model("qwen3_vl")


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_equal_the_stock_models(model, side):
    rows = [("See ", STILL, " and ", WIDE, " then ", TALL, "?"), ("A ", (5, 4, 4), " or ", STILL, STILL, " why?")]
    inputs = tiny_qwen.inputs("qwen3_vl", *rows, side=side)
    ours, stock = (
        adapter_class("qwen3_vl")(model, positions=rule).positions(
            inputs["input_ids"], inputs["attention_mask"], inputs
        )
        for rule in ("correct", "stock")
    )
    assert torch.equal(ours, stock)


def handed_over(model, run) -> list[dict]:
    """Keyword arguments of the decoder's calls while `run` runs."""
    calls = []
    stock = model.model.language_model.forward

    def forward(*args, **kwargs):
        calls.append(kwargs)
        return stock(*args, **kwargs)

    model.model.language_model.forward = forward
    try:
        run()
    finally:
        del model.model.language_model.__dict__["forward"]
    return calls


def has_rows(call: dict) -> torch.Tensor:
    """Where a call adds features to the states of its prompts, (B, S)."""
    return (call["deepstack_visual_embeds"][0] != 0).any(-1)


def flat(layer) -> torch.Tensor:
    return layer if isinstance(layer, torch.Tensor) else torch.cat(list(layer))


def blank(grid: tiny_qwen.Grid) -> tango.VisualTokens:
    t, h, w = grid
    features, times = torch.zeros(t, h * w // 4, 1), torch.arange(t, dtype=torch.float64)
    return tango.VisualTokens(features=features, grid=(h // 2, w // 2), timestamps_s=times)


def test_kept_tokens_bring_their_own_deepstack_features(model):
    inputs = tiny_qwen.inputs("qwen3_vl", ("See ", STILL, " and ", WIDE, "?"), ("A ", TALL, " why?"))
    with torch.no_grad():
        videos = model.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
        ).deepstack_features
        images = model.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
        ).deepstack_features
    with tango.prune(model, "uniform", retention_ratio=0.5):
        calls = handed_over(model, lambda: model.generate(**inputs, **GREEDY))
    first, *later = calls
    assert all(call.get("deepstack_visual_embeds") is None for call in later)
    wide, tall = (UniformPruner(retention_ratio=0.5)(blank(grid)) for grid in (WIDE, TALL))
    visual = has_rows(first)
    assert visual.sum(1).tolist() == [8 + len(wide.indices), len(tall.indices)]
    for i, layer in enumerate(first["deepstack_visual_embeds"]):
        own = flat(videos[i])
        expected = torch.cat([flat(images[i]), own[wide.indices], own[18 + tall.indices]])
        torch.testing.assert_close(layer[visual], expected)


def test_beams_get_the_features_of_their_own_row(model):
    inputs = tiny_qwen.inputs("qwen3_vl", ("See ", WIDE, " and ", TALL, "?"), ("A ", TALL, " why?"))
    with tango.prune(model, "uniform", retention_ratio=0.5):
        (one, *_), (three, *_) = (
            handed_over(model, lambda beams=beams: model.generate(**inputs, num_beams=beams, **GREEDY))
            for beams in (1, 3)
        )
    assert has_rows(one)[0].sum() != has_rows(one)[1].sum()
    for layer, repeated in zip(one["deepstack_visual_embeds"], three["deepstack_visual_embeds"], strict=True):
        assert torch.equal(repeated, layer.repeat_interleave(3, dim=0))


def test_a_model_may_have_no_deepstack_features():
    from transformers import Qwen3VLForConditionalGeneration

    plain = Qwen3VLForConditionalGeneration(tiny_qwen.config("qwen3_vl", deepstack_visual_indexes=[])).eval()
    inputs = tiny_qwen.inputs("qwen3_vl", ("Hi", WIDE, "?"))
    expected = plain.generate(**tiny_qwen.stock(inputs), **GREEDY)
    with tango.prune(plain, "uniform", retention_ratio=1.0):
        assert torch.equal(plain.generate(**inputs, **GREEDY), expected)


def test_deepstack_features_matter(model):
    """Else the tests against the stock model would prove nothing about them."""
    inputs = tiny_qwen.inputs("qwen3_vl", ("Hi", WIDE, "?"))
    with tango.prune(model, "uniform", retention_ratio=0.5) as pruning, torch.no_grad():
        logits = model(**inputs).logits
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        without = model(inputs_embeds=short.inputs_embeds, position_ids=short.position_ids).logits
    assert (logits - short.spread(without)).abs().max() > 0.1


def test_merged_tokens_take_the_row_of_the_token_they_stand_for(model, monkeypatch):
    index = torch.tensor([2, 7, 16])

    def merge(_self, tokens):
        return PrunedTokens(features=tokens.features.flatten(0, 1)[index] / 2 + 1, indices=index)

    monkeypatch.setattr(UniformPruner, "prune", merge)
    inputs = tiny_qwen.inputs("qwen3_vl", ("Hi", WIDE, "?"))
    with torch.no_grad():
        videos = model.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True
        ).deepstack_features
    with tango.prune(model, "uniform", retention_ratio=0.2):
        calls = handed_over(model, lambda: model.generate(**inputs, **GREEDY))
    for layer, stock in zip(calls[0]["deepstack_visual_embeds"], videos, strict=True):
        torch.testing.assert_close(layer[has_rows(calls[0])], flat(stock)[index])


def test_chunked_prefill(model):
    """The prompt passes in pieces; every piece gets its part of the deepstack features."""
    inputs = tiny_qwen.inputs("qwen3_vl", ("See ", WIDE, " and ", TALL, "?"))
    with tango.prune(model, "uniform", retention_ratio=0.5):
        whole = handed_over(model, lambda: model.generate(**inputs, **GREEDY))
        try:
            pieces = handed_over(model, lambda: model.generate(**inputs, **GREEDY, prefill_chunk_size=16))
        except RuntimeError:  # transformers 5.17 cuts three-dimensional positions along the wrong axis
            pytest.skip("this transformers release cannot prefill Qwen-VL models in pieces")
    if pieces[0]["inputs_embeds"].shape[1] != 16:
        pytest.skip("this transformers release does not prefill in pieces")
    for i, layer in enumerate(whole[0]["deepstack_visual_embeds"]):
        prefill = [p["deepstack_visual_embeds"][i] for p in pieces if p.get("deepstack_visual_embeds") is not None]
        torch.testing.assert_close(torch.cat(prefill, dim=1), layer)


@pytest.mark.parametrize("marks", ["nested", "flat"])
def test_a_frame_without_kept_tokens_keeps_its_time(model, marks):
    """EVS at 10 % keeps the first of many frames; all else of the prompt stays: times, marks of frames, question."""
    processor = processor_of("qwen3_vl", model)
    inputs = tango.prepare(processor, video(12), "What?", vision_marks=marks)
    full, pad = inputs["input_ids"][0].tolist(), model.config.video_token_id
    frames = int(inputs["video_grid_thw"][0, 0])
    per_frame = full.count(pad) // frames
    assert (frames, per_frame) == (6, 4)
    with tango.prune(model, "evs", retention_ratio=0.1) as pruning:
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        output = model.generate(**inputs, **GREEDY)[0, len(full) :].tolist()
    left = short.input_ids[0].tolist()
    assert [token for token in left if token != pad] == [token for token in full if token != pad]
    assert [i for i, token in enumerate(left) if token == pad] == [
        i for i, token in enumerate(full) if token == pad][:per_frame]  # fmt: skip
    text = processor.tokenizer.decode(left)
    assert text.count(" seconds>") == frames
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == frames + (marks == "nested")
    before = adapter_class("qwen3_vl")(model).positions(inputs["input_ids"], inputs["attention_mask"], inputs)
    assert torch.equal(short.position_ids[1:, 0], before[:, 0, short.kept[0]])  # each stands where it stood
    assert output


def test_evs_leaves_empty_frames_between_full_ones(model):
    """The scene changes at the fourth of six steps; the others are still."""
    inputs = tiny_qwen.inputs("qwen3_vl", ("See ", (6, 4, 4), " why?"))
    steps = inputs["pixel_values_videos"].unflatten(0, (6, 16)).clone()
    steps[1:3], steps[4:] = steps[:1], steps[3:4]
    inputs["pixel_values_videos"] = steps.flatten(0, 1)
    with tango.prune(model, "evs", retention_ratio=1 / 3) as pruning:
        prepared = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs)
        calls = handed_over(model, lambda: model.generate(**inputs, **GREEDY))
    assert prepared.videos.keep_masks[0].view(6, 4).sum(1).tolist() == [4, 0, 0, 4, 0, 0]
    assert tiny_qwen.tokenizer().decode(prepared.short.input_ids[0]).count(" seconds>") == 6
    assert has_rows(calls[0]).sum() == 8
