"""A method that looks at the question, in whole calls on the real classes of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tango
from tango.models import adapter_class
from tango.models.calls import cache_argument
from tango.profiling import StageTimer
from tests import tiny
from tests.families import Video, all_families
from tests.models.test_base import MODELS

GREEDY = {"do_sample": False, "max_new_tokens": 4}
QUESTIONS = (" What color is the second one?", " Why?")
METHOD = {"method": "cdpruner", "retention_ratio": 0.3, "saliency": "attn"}


def inputs_for(family: str, *questions: str) -> dict[str, Any]:
    """One video, asked about once in every row of a padded batch."""
    return all_families()[family].inputs(*(("Look: ", Video(6, 1), question) for question in questions))


def kept(pruning: Any, inputs: dict[str, Any]) -> list[list[int]]:
    """Placeholders that are kept of every video."""
    with torch.no_grad():
        videos = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).videos
    return [mask.nonzero()[:, 0].tolist() for mask in videos.keep_masks]


@pytest.mark.parametrize("family", MODELS)
def test_two_questions_about_one_video_in_a_batch(family: str) -> None:
    """Each row keeps what it would keep alone, and says what it would say alone."""
    model = MODELS[family]()
    both = inputs_for(family, *QUESTIONS)
    with tango.prune(model, **METHOD) as pruning:
        first, second = kept(pruning, both)
        assert first != second
        said = tiny.new_tokens(model, both, model.generate(**both, **GREEDY))
        for question, own, text in zip(QUESTIONS, (first, second), said, strict=True):
            alone = inputs_for(family, question)
            assert kept(pruning, alone) == [own]
            assert tiny.new_tokens(model, alone, model.generate(**alone, **GREEDY)) == [text]
    with tango.prune(model, "divprune", retention_ratio=0.3) as pruning:  # looks at the video alone
        first, second = kept(pruning, both)
        assert first == second


@pytest.mark.parametrize("family", MODELS)
def test_a_question_leaves_no_trace(family: str) -> None:
    model = MODELS[family]()
    inputs = [inputs_for(family, question) for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[0])]
    with tango.prune(model, **METHOD) as pruning:
        chosen = [kept(pruning, each) for each in inputs]
        said = [model.generate(**each, **GREEDY).tolist() for each in inputs]
    assert chosen[0] == chosen[2] != chosen[1]
    assert said[0] == said[2]


@pytest.mark.parametrize("family", MODELS)
def test_the_choice_is_that_of_the_pruner_on_what_the_adapter_gives(family: str) -> None:
    model, inputs = MODELS[family](), inputs_for(family, QUESTIONS[0])
    with tango.prune(model, **METHOD) as pruning, torch.no_grad():
        (tokens,) = pruning.adapter.encode_videos(inputs, tango.Signal.TEXT, StageTimer()).videos
        (mask,) = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).videos.keep_masks
        _, expected = pruning.adapter.lay_out(tokens, pruning.pruner(tokens))
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("family", MODELS)
def test_at_ratio_one_nothing_changes(family: str) -> None:
    model, inputs = MODELS[family](), inputs_for(family, *QUESTIONS)
    with tango.prune(model, tango.KeepAllPruner()), torch.no_grad():
        expected = model(**inputs).logits
    with tango.prune(model, "cdpruner", retention_ratio=1.0, saliency="attn"), torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)


def test_several_videos_of_a_prompt_have_a_question_each() -> None:
    model = tiny.llava_onevision()
    pixels = torch.stack([tiny.clip(2), tiny.clip(2)])  # the same video twice
    rows = tiny.batch(tiny.prompt("A ", 6, " What color is it?", 6, " Why?"))
    inputs = {**rows, "pixel_values_videos": pixels, "video_timestamps_s": tiny.TIMES * 2}
    alone = {**tiny.batch(tiny.prompt("A ", 6, " Why?")), "pixel_values_videos": pixels[:1],
             "video_timestamps_s": tiny.TIMES}  # fmt: skip
    with tango.prune(model, **METHOD) as pruning:
        first, second = kept(pruning, inputs)
        assert first != second
        assert kept(pruning, alone) == [second]


def test_a_cache_of_the_video_alone_does_not_serve_another_question() -> None:
    """Cut after the video, it would show the tokens that were chosen for the first question."""
    model = tiny.llava_onevision()
    first, other = (inputs_for("llava_onevision", question) for question in QUESTIONS)
    name, before = cache_argument(model), tiny.tokenizer()("Look: ")["input_ids"]

    def cropped(pruning: Any) -> Any:
        output = model.generate(**first, **GREEDY, return_dict_in_generate=True)
        cache = output[name]
        cache.crop(len(before) + pruning.stats.entering_after - cache.get_seq_length())  # by so many tokens
        return cache

    with tango.prune(model, "uniform", retention_ratio=0.3) as pruning:
        expected = model.generate(**other, **GREEDY)
        assert torch.equal(model.generate(**other, **GREEDY, **{name: cropped(pruning)}), expected)
    with tango.prune(model, **METHOD) as pruning:
        with pytest.raises(
            tango.TangoError, match="a pruned video without the question by which its tokens were chosen"
        ):
            model.generate(**other, **GREEDY, **{name: cropped(pruning)})
        output = model.generate(**first, **GREEDY, return_dict_in_generate=True)
        cache = output[name]
        more = tiny.tokenizer()(" And then?")["input_ids"]
        ids = torch.cat([output.sequences, torch.tensor([more])], dim=1)
        turn = {**first, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert model.generate(**turn, **GREEDY, **{name: cache}).shape[1] > ids.shape[1]


def test_merging_in_the_tower_before_it() -> None:
    model, inputs = tiny.llava_onevision(), inputs_for("llava_onevision", *QUESTIONS)
    merger = tango.EarlyTomFramesMerger(blocks="0", threshold=-1.0)
    with tango.prune(model, **METHOD, tower=merger) as pruning:
        first, second = kept(pruning, inputs)
        assert first != second
        assert model.generate(**inputs, **GREEDY).shape[0] == 2


def test_an_adapter_without_the_text_refuses_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llava_onevision()
    adapter = adapter_class("llava_onevision")
    monkeypatch.setattr(adapter, "signals", adapter.signals & ~tango.Signal.TEXT)
    with pytest.raises(tango.MissingSignalError, match="cdpruner needs the text of the question, which the LLaVA-One"):
        tango.prune(model, **METHOD)
