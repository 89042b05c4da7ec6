"""Conversations on their way to a prompt: what is shown in them, and what their text may not hold."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tango.containers import Video
from tango.errors import PromptError, UnknownNameError

TimeInstruction = Literal["none", "frames", "release"]

Turn = dict[str, Any]  # {"role": ..., "content": text or parts, ...}
# Where a part of each kind may hold what it shows; the first is ours, the others are those of transformers.
_PLACES = {"video": ("video", "path", "url"), "image": ("image", "path", "url", "base64")}
_KINDS = "text, video or image"


def read_turns(messages: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """The messages in one form: content is text or a list of parts, and a video is under "video", an image "image".

    `video_url` and `image_url`, the parts of OpenAI's chats, count as well.

    Raises:
        PromptError: a message or a part is nothing of the kind.
    """
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise PromptError(f"a message must be a mapping with role and content, got {_short(message)}")
        content = message.get("content")
        if isinstance(content, Mapping):
            content = [content]
        if content is not None and not isinstance(content, str):
            content = [_read_part(part) for part in content]
        turns.append({**message, "content": "" if content is None else content})
    return turns


def _read_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("video_url", "image_url"):
        kind, address = kind.removesuffix("_url"), part.get(kind)
        part = {"type": kind, kind: address.get("url") if isinstance(address, Mapping) else address}
    if kind == "text" and isinstance(part.get("text"), str):
        return dict(part)
    if kind not in _PLACES:
        raise PromptError(f"a part must be of type {_KINDS}, got {_short(part)}")
    shown = next(((place, part[place]) for place in _PLACES[kind] if part.get(place) is not None), None)
    if shown is None:
        return {"type": kind}
    place, value = shown
    return {"type": kind, kind: base64.b64decode(value) if place == "base64" else value}


def load_media(turns: Sequence[Turn], **load: Callable[[Any], Any]) -> list[Turn]:
    """The turns with every video and image as `load["video"]` and `load["image"]` read it.

    Raises:
        PromptError: a part shows nothing.
    """

    def loaded(part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        if kind not in load:
            return part
        if kind not in part:
            raise PromptError(f"a part of type {kind} shows nothing; name its file under {' or '.join(_PLACES[kind])}")
        return {"type": kind, kind: load[kind](part[kind])}

    return [{**turn, "content": [loaded(part) for part in turn["content"]]} if _parts(turn) else turn for turn in turns]


def media(turns: Iterable[Turn], kind: str) -> list[Any]:
    """All videos or all images of a conversation, in order."""
    return [part[kind] for turn in turns for part in _parts(turn) if part["type"] == kind]


def without_media(turns: Iterable[Turn]) -> list[Turn]:
    """The turns for a chat template, which needs to know where media stand, not what is in them."""
    plain = []
    for turn in turns:
        parts = [part if part["type"] == "text" else {"type": part["type"]} for part in _parts(turn)]
        plain.append({**turn, "content": parts} if parts else turn)
    return plain


def tell_times(turns: Sequence[Turn], kind: TimeInstruction, *, asked: bool) -> list[Turn]:
    """Describe the time of every video in front of the text that follows it.

    Args:
        asked: a video without times is an error, not left alone.
    Raises:
        UnknownNameError: there is no such instruction; PromptError: it was asked for, but a video has no times.
    """
    told = []
    for turn in turns:
        parts: list[dict[str, Any]] = []
        waiting = ""
        for part in _parts(turn):
            if part["type"] == "video" and isinstance(part["video"], Video):
                waiting += describe_time(part["video"], kind)
            elif part["type"] == "video" and asked and kind != "none":
                raise PromptError(f"time_instruction={kind!r} needs a file or a Video, got frames without timestamps")
            elif part["type"] == "text" and waiting:
                part, waiting = {**part, "text": waiting + part["text"]}, ""
            parts.append(part)
        if waiting:
            parts.append({"type": "text", "text": waiting})
        told.append({**turn, "content": parts} if parts else turn)
    return told


def describe_time(video: Video, kind: TimeInstruction) -> str:
    """What LLaVA-Video reads about a video before the question, with the line's end; "" for "none".

    Args:
        kind: "frames"; or "release", with a slip of the paper's release, which gives the frames' height as their
            number.
    Raises:
        UnknownNameError: there is no such kind.
    Source: the text, missing spaces included, is that of VLMEvalKit's LLaVA-Video.
    """
    if kind not in ("none", "frames", "release"):
        raise UnknownNameError("time instruction", kind, ("none", "frames", "release"))
    if kind == "none":
        return ""
    count = video.frames.shape[1] if kind == "release" else len(video.frames)
    times = ",".join(f"{time:.2f}s" for time in video.timestamps_s.tolist())
    return (
        f"The video lasts for {video.duration_s:.2f} seconds,and {count} frames are uniformly sampled from it."
        f"These frames are located at {times}.Please answer the following questions related to this video.\n"
    )


def check_texts(turns: Sequence[Turn], reserved: Iterable[str], *, prefill: str = "") -> None:
    """Refuse text that would become a special token: it could end a turn, or ask for a video that is not there.

    Raises:
        PromptError: naming the message, the token and the way out.
    """
    reserved = sorted(reserved, key=len, reverse=True)
    texts = [(f"message {n} ({turn['role']})", text) for n, turn in enumerate(turns) for text in _texts(turn)]
    for where, text in [*texts, ("the prefill", prefill)]:
        found = next((token for token in reserved if token in text), None)
        if found is not None:
            raise PromptError(
                f"the text of {where} holds {found!r}, a token with a meaning of its own for this model; remove or "
                "change it. Where a video or an image stands is said by a part of that type, not by the text"
            )


def reserved_tokens(tokenizer: Any, placeholders: Iterable[str | None] = ()) -> set[str]:
    """Texts that the tokenizer takes for something else than text, and placeholders of media."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in (*added, *tokenizer.all_special_tokens, *placeholders) if token}


def _texts(turn: Turn) -> Iterator[str]:
    """The role, and the texts of a turn; those that follow each other as the one that they become."""
    yield str(turn["role"])
    if isinstance(turn["content"], str):
        yield turn["content"]
    run = ""
    for part in _parts(turn):
        if part["type"] == "text":
            run += part["text"]
        else:
            yield run
            run = ""
    yield run


def _parts(turn: Turn) -> list[dict[str, Any]]:
    return [] if isinstance(turn["content"], str) else turn["content"]


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
