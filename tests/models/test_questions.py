"""Which ids of a prompt are the question about a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tango
from tango.containers import Signal
from tango.errors import PromptError
from tango.models import adapter_class
from tango.models.questions import ends_of_turn, ids_beside_text, questions
from tango.profiling import StageTimer
from tango.runtime.answering import prepare_chat
from tests.families import glm as tiny_glm
from tests.models.test_base import MODELS, inputs_of
from tests.runtime.test_encoding import build, messages, processor_of, video

V, END, MARK, PAD = 90, 91, 92, 93  # a placeholder, the end of a turn, a mark, padding; other ids are text


def found(*rows: list[int], placeholders: list[int], unreadable: set[int] = frozenset()) -> list[list[int]]:  # type: ignore[assignment]
    """The questions in rows of equal length; `unreadable` ids are those that may not be looked at."""
    ids = torch.tensor(rows)
    readable = ~torch.isin(ids, torch.tensor([PAD, *unreadable]))
    found = questions(ids, readable, ids == V, placeholders, ends={END}, beside_text={MARK, V})
    return [question.tolist() for question in found]


def test_it_ends_with_its_turn() -> None:
    """What is said before, in a system prompt or under the role's name, does not belong to it."""
    row = [1, 2, END, 3, MARK, V, V, MARK, 10, 11, 12, END, 4, 5]
    assert found(row, placeholders=[2]) == [[10, 11, 12]]


def test_later_turns_do_not_count() -> None:
    row = [1, END, 3, V, V, 10, 11, END, 4, 20, END, 3, 30, 31, END, 4]
    assert found(row, placeholders=[2]) == [[10, 11]]


def test_without_an_end_it_goes_on_to_the_end_of_the_prompt() -> None:
    assert found([1, V, V, 10, 11, 4], placeholders=[2]) == [[10, 11, 4]]
    ids = torch.tensor([[1, V, V, 10, END]])
    nothing: set[int] = set()
    (text,) = questions(ids, ids > 0, ids == V, [2], ends=nothing, beside_text=nothing)
    assert text.tolist() == [10, END]


def test_a_question_before_its_video() -> None:
    row = [1, 2, END, 3, 10, 11, MARK, V, V, MARK, END, 4, 5]
    assert found(row, placeholders=[2]) == [[3, 10, 11]]
    assert found([10, 11, V, V], placeholders=[2]) == [[10, 11]]


def test_videos_of_a_batch_and_of_one_prompt() -> None:
    """Each has the text after it; times between the frames of a video are no question about another."""
    first = [3, V, V, 10, V, 50, V, 51, V, 11, 12, END, 4]
    second = [PAD, PAD, PAD, 3, V, V, V, V, 20, 21, END, 4, 5]
    assert found(first, second, placeholders=[2, 3, 4]) == [[10, 11, 12], [11, 12], [20, 21]]


def test_two_turns_with_a_video_each() -> None:
    row = [3, V, V, 10, END, 4, 20, END, 3, V, V, V, 30, END, 4]
    assert found(row, placeholders=[2, 3]) == [[10], [30]]


def test_padding_on_the_right_and_answers_to_be_learnt_are_not_read() -> None:
    assert found([3, V, V, 10, 11, PAD, PAD], placeholders=[2]) == [[10, 11]]
    assert found([3, V, V, 10, 11, 60, 61], placeholders=[2], unreadable={60, 61}) == [[10, 11]]


def test_no_text_is_refused() -> None:
    with pytest.raises(PromptError, match=r"no text beside video 1 in its turn; ask something"):
        found([10, V, END, MARK, V, V, MARK, END], placeholders=[1, 2])


def text_of(family: str, inputs: Any) -> list[str]:
    """What the text signal says, read from the embeddings."""
    model = MODELS[family]()
    embed = model.get_input_embeddings()
    table = embed(torch.arange(embed.num_embeddings))
    videos = adapter_class(family)(model).encode_videos(inputs, Signal.TEXT, StageTimer()).videos
    tokenizer = processor_of(family, model).tokenizer
    texts = []
    for one in videos:
        assert one.text is not None
        ids = [int((table == row).all(1).nonzero()[0, 0]) for row in one.text]
        texts.append(tokenizer.decode(ids))
    return texts


@pytest.mark.parametrize("family", MODELS)
def test_every_family_hands_over_the_embeddings_of_the_question(family: str) -> None:
    assert text_of(family, inputs_of(family)) == [" What?"]


@pytest.mark.parametrize("family", MODELS)
def test_real_templates(family: str) -> None:
    """The question as it is asked, with the line break before it if there is one; follow-ups change nothing."""
    _, processor = build(family)
    (alone,) = text_of(family, tango.prepare(processor, video(), "What color is plain?"))
    history = [("What color is plain?", "Cyan.")]
    (later,) = text_of(family, prepare_chat(processor, messages(video(), "Why so?", history)))
    if family in ("llava_next_video", *tiny_glm.CLASSES):  # their templates here have no token that ends a turn
        assert alone.startswith("What color is plain?")
        return
    assert alone.strip().endswith("What color is plain?")
    assert later == alone
    assert "system" not in alone
    assert "user" not in alone
    if family == "llava_video":
        assert alone.strip().startswith("The video lasts")  # its prompts tell the time
    else:
        assert alone.strip() == "What color is plain?"


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_the_answer_of_a_training_step_is_not_read(family: str) -> None:
    inputs = inputs_of(family)
    length = inputs["input_ids"].shape[1]
    labels = torch.full((1, length), -100)
    labels[0, -1] = inputs["input_ids"][0, -1]
    model = MODELS[family]()
    with tango.prune(model, "cdpruner", retention_ratio=0.5, saliency="attn") as pruning:
        adapter = pruning.adapter
        (one,) = adapter.encode_videos({**inputs, "labels": labels}, Signal.TEXT, StageTimer()).videos
        (all_,) = adapter.encode_videos(inputs, Signal.TEXT, StageTimer()).videos
        assert torch.equal(one.text, all_.text[:-1])
        assert model(**inputs, labels=labels).loss.isfinite()
        with pytest.raises(PromptError, match="no text beside video 0"):
            model(**inputs, labels=inputs["input_ids"])


def image_token_id(config: Any) -> int:
    return getattr(config, "image_token_id", None) or config.image_token_index


@pytest.mark.parametrize("family", MODELS)
def test_what_configs_name(family: str) -> None:
    model = MODELS[family]()
    config = model.config.get_text_config()
    assert ends_of_turn(model) == {config.eos_token_id}
    assert {adapter_class(family)(model).video_token_id, image_token_id(model.config)} <= ids_beside_text(model)
    model.generation_config.eos_token_id = [3, 5]
    assert ends_of_turn(model) == {config.eos_token_id, 3, 5}


def test_a_prompt_of_another_processor_is_refused_as_elsewhere() -> None:
    inputs = inputs_of("llava_onevision")
    inputs["input_ids"] = inputs["input_ids"][:, :-8]
    inputs["attention_mask"] = inputs["attention_mask"][:, :-8]
    model = MODELS["llava_onevision"]()
    with tango.prune(model, "cdpruner", saliency="attn"), pytest.raises(ValueError, match="video placeholders"):
        model.generate(**inputs)


def test_ids_on_a_folder_of_the_family(tmp_path: Path) -> None:
    """Configs of a stored checkpoint name the same tokens."""
    from transformers import AutoConfig

    model = MODELS["qwen3_vl"]()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).vision_start_token_id in ids_beside_text(model)
