"""Finds the question about a video in its prompt, by ids alone, for methods that look at it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tango.annotations import Bool, Int
from tango.errors import PromptError
from tango.models.calls import Inputs, on_host
from tango.models.placement import device_of
from tango.models.splice import check_count
from tango.ops.device import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Fields of configs that name tokens without meaning of their own.
_BESIDE_TEXT = (
    *("bos_token_id", "image_token_id", "image_token_index", "video_token_id", "video_token_index"),
    *("vision_start_token_id", "vision_end_token_id", "boi_token_id", "eoi_token_id"),
    *("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"),
    *("audio_token_id", "audio_token_index", "audio_start_token_id", "audio_end_token_id"),
)


def questions(
    input_ids: Int[Tensor, "B L"],
    readable: Bool[Tensor, "B L"],
    video: Bool[Tensor, "B L"],
    placeholders: Sequence[int],
    *,
    ends: Collection[int],
    beside_text: Collection[int],
) -> list[Int[Tensor, "Q"]]:
    """The ids of the question about each video, in the order of the placeholders; all tensors are on the host.

    It is the text after the video's last placeholder, up to the token that ends the turn; in templates without one, up
    to the end of the prompt, so that the cue for the answer and later turns belong to it. If nothing stands there, it
    is the text before the video in the same turn, with the name of the role. Otherwise other turns do not count, so
    that follow-up questions change nothing. Nor do the times between the frames of a video; that of its first frame is
    text before it.

    Args:
        readable: the columns that may be looked at: neither padding nor the answer that a model is trained to give.
        video: mask of the video placeholders.
        placeholders: how many each video has.
        ends: ids of the tokens that end a turn.
        beside_text: ids of other tokens that are no text.
    Raises:
        PromptError: a prompt has no text beside its video.
    """
    end, beside = (torch.isin(input_ids, torch.tensor(list(known), dtype=torch.long)) for known in (ends, beside_text))
    text = readable & ~video & ~end & ~beside
    places = video.nonzero().tolist()  # (row, column) of every placeholder
    spans = [(*places[a], places[b - 1][1]) for a, b in pairwise(accumulate(placeholders, initial=0))]
    for row, start, stop in spans:
        text[row, start:stop] = False
    found = []
    for number, (row, start, stop) in enumerate(spans):
        borders = end[row].nonzero()[:, 0].tolist()
        after = slice(stop + 1, next((column for column in borders if column > stop), None))
        before = slice(max((column for column in borders if column < start), default=0), start)
        sides = [input_ids[row, side][text[row, side]] for side in (after, before)]
        if not any(map(len, sides)):
            raise PromptError(
                f"the method looks at the question, but there is no text beside video {number} in its turn; ask "
                "something there, or take a method that does not need the text"
            )
        found.append(next(side for side in sides if len(side)))
    return found


def embedded_questions(
    model: PreTrainedModel,
    inputs: Inputs,
    kind: str,
    where: Bool[Tensor, "B L"],
    placeholders: Sequence[int],
    beside: Collection[int],
) -> Sequence[Tensor]:
    """Input embeddings (Q, D) of the question about each video, or each image.

    Labelled columns are what the model is trained to say, so they do not belong to it.

    Args:
        kind: "video" or "image", for messages.
        where: mask of the placeholders, on the host; `placeholders`: how many each has.
        beside: ids of tokens that are no text, besides those that the config names.
    Raises:
        ValueError: the prompts have more or fewer placeholders.
        PromptError: a prompt has no text beside its video.
    """
    host = on_host({name: inputs.get(name) for name in ("input_ids", "attention_mask", "labels")})
    ids, readable = host["input_ids"], torch.ones_like(host["input_ids"], dtype=torch.bool)
    if host["attention_mask"] is not None:
        readable &= host["attention_mask"].bool()
    if host["labels"] is not None:
        readable &= host["labels"] == -100
    check_count(kind, int(where.sum()), sum(placeholders))
    beside = {*ids_beside_text(model), *beside}
    found = questions(ids, readable, where, placeholders, ends=ends_of_turn(model), beside_text=beside)
    embed = model.get_input_embeddings()
    with torch.no_grad():  # ids without a batch: pruning does not look for placeholders among them
        embeds = embed(to_device(torch.cat(found), device_of(embed)))
    return embeds.split([len(question) for question in found])


def ends_of_turn(model: PreTrainedModel) -> set[int]:
    """Ids of the tokens that end a turn: those that end an answer."""
    configs = (model.config.get_text_config(), getattr(model, "generation_config", None))
    return {value for config in configs for value in _ids(getattr(config, "eos_token_id", None))}


def ids_beside_text(model: PreTrainedModel) -> set[int]:
    """Ids of placeholders and marks that the model's config names."""
    configs = (model.config, model.config.get_text_config())
    return {value for config in configs for name in _BESIDE_TEXT for value in _ids(getattr(config, name, None))}


def _ids(value: Any) -> Iterator[int]:
    yield from () if value is None else (value,) if isinstance(value, int) else value
