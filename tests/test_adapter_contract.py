"""What an adapter may say beyond ids: whose placeholders are whose, other inputs of the short prompt, and of ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tango
from tango.models import base
from tango.models.llava_onevision import LlavaOnevisionAdapter
from tango.models.splice import ShortPrompt
from tests import tiny

GREEDY = {"do_sample": False, "max_new_tokens": 4}


def use(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    """Let LLaVA-OneVision models have an adapter with these members."""
    adapter = type("Changed", (LlavaOnevisionAdapter,), members)
    monkeypatch.setitem(base._ADAPTERS, "llava_onevision", adapter)


def test_videos_and_images_may_share_a_placeholder(monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture of one id, then a video of the same: the adapter, which sees the prompt, tells them apart."""
    model = tiny.llava_onevision()
    inputs, video = tiny.one_video(), model.config.video_token_id
    pictures = {"pixel_values": torch.randn(1, 2, 3, 112, 112), "image_sizes": torch.tensor([[112, 112]])}
    with torch.no_grad():
        output = model.model.get_image_features(**pictures, return_dict=True)
        count = len(output.pooler_output[0])
    ids = torch.cat([torch.full((1, count), model.config.image_token_id), inputs["input_ids"]], dim=1)
    given = {**inputs, **pictures, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with tango.prune(model, "uniform", retention_ratio=0.5):
        expected = model.generate(**given, **GREEDY)[:, ids.shape[1] :]

    def placeholders(_self: Any, input_ids: Tensor, inputs: dict[str, Any], _images: Any) -> tuple[Tensor, Tensor]:
        assert torch.equal(inputs["input_ids"], input_ids)
        assert torch.equal(inputs["attention_mask"], given["attention_mask"])
        rank = (input_ids == video).cumsum(1)
        return (input_ids == video) & (rank > count), (input_ids == video) & (rank <= count)

    use(monkeypatch, placeholders=placeholders)
    shared = ids.masked_fill(ids == model.config.image_token_id, video)
    with tango.prune(model, "uniform", retention_ratio=0.5):
        got = model.generate(**{**given, "input_ids": shared}, **GREEDY)[:, ids.shape[1] :]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("cached", [True, False])
def test_what_stock_code_is_told_of_the_short_prompt(monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    """Beside embeddings come ids without placeholders, for exactly the tokens of the pass; the rest for the prompt."""
    model, inputs, seen = tiny.llava_onevision(), tiny.one_video(), []
    video = model.config.video_token_id

    def short_inputs(_self: Any, short: ShortPrompt) -> dict[str, Any]:
        return {"kinds": short.is_video.long()}

    def beside_embeds(_self: Any, input_ids: Tensor) -> dict[str, Any]:
        return {"ids": input_ids}

    def note(_module: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        seen.append({name: kwargs.pop(name) for name in ("kinds", "ids") if name in kwargs})
        return args, kwargs

    use(monkeypatch, short_inputs=short_inputs, beside_embeds=beside_embeds)
    model.model.register_forward_pre_hook(note, with_kwargs=True)
    with tango.prune(model, "uniform", retention_ratio=0.25) as pruning, torch.no_grad():
        model(**inputs)
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        monkeypatch.setattr(LlavaOnevisionAdapter, "short_inputs", lambda *_: {})
        del base._ADAPTERS["llava_onevision"].short_inputs  # generate refuses inputs that no stock model knows
        model.generate(**inputs, **GREEDY, use_cache=cached)
    S = short.input_ids.shape[1]
    assert torch.equal(seen[0]["kinds"], short.is_video.long())
    assert (seen[0]["ids"] == video).sum() == 0
    assert torch.equal(
        seen[0]["ids"], short.input_ids.masked_fill(short.is_video, model.config.text_config.pad_token_id)
    )
    assert torch.equal(seen[1]["ids"], seen[0]["ids"])
    assert [step["ids"].shape[1] for step in seen[2:] if "ids" in step] == ([] if cached else [S + 1, S + 2, S + 3])
    assert len(seen) == 5


@torch.no_grad()
def test_inputs_may_say_otherwise_whether_they_hold_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of images under the same name go to stock code, also on their way through `generate`, where the adapter's
    own input does not get; inputs that do not say what they hold get to the adapter, to be refused."""
    model, inputs = tiny.llava_onevision(), tiny.one_video()
    stock = {name: value for name, value in inputs.items() if name != "video_timestamps_s"}
    ways: list[dict[str, Any]] = [GREEDY, {**GREEDY, "num_beams": 2}]
    expected, logits = [model.generate(**stock, **way) for way in ways], model(**stock).logits
    kept: dict[str | None, bool | None] = {"video": True, "image": False, None: None}

    def holds_video(_self: Any, inputs: dict[str, Any]) -> bool | None:
        return inputs.get("pixel_values_videos") is not None and kept[inputs.get("kind")]

    def encode_videos(self: Any, inputs: dict[str, Any], *args: Any) -> Any:
        if inputs.get("kind") is None:
            raise ValueError("kind must say what pixels show")
        return LlavaOnevisionAdapter.encode_videos(self, inputs, *args)

    own = LlavaOnevisionAdapter.own_inputs | {"kind"}
    use(monkeypatch, holds_video=holds_video, encode_videos=encode_videos, own_inputs=own)
    with tango.prune(model, "uniform", retention_ratio=0.5) as pruning:
        for wanted, way in zip(expected, ways, strict=True):
            assert torch.equal(model.generate(**inputs, kind="image", **way), wanted)
        assert torch.equal(model(**inputs, kind="image").logits, logits)
        for call, options in ((model.generate, GREEDY), (model, {})):
            assert pruning.stats is None
            call(**inputs, kind="video", **options)
            assert pruning.stats is not None
            pruning._own.stats = None
            with pytest.raises(ValueError, match="what pixels show"):
                call(**inputs, **options)
    assert base.own_inputs(model) == own
