"""Prepares conversations for a prompt: finds their media, and refuses text that would change the prompt's meaning."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tango.containers import Video
from tango.errors import PromptError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TimeInstruction = Literal["none", "frames", "release"]

Part = dict[str, Any]  # {"type": "text", "text": ...}, or a medium: {"type": "video", "video": ...}
Turn = dict[str, Any]  # {"role": ..., "content": text or parts, ...}
# Keys under which a part of each kind may hold its medium: first ours, then those of transformers.
_KEYS = {"video": ("video", "path", "url"), "image": ("image", "path", "url", "base64")}
_KINDS = "text, video or image"


def read_turns(messages: Iterable[Mapping[str, Any]]) -> list[Turn]:
    """Bring messages to one form: content is text or a list of parts, with videos under "video", images under "image".

    The parts of OpenAI's chats, `video_url` and `image_url`, are read as well.

    Raises:
        PromptError: a message is no mapping with a role, or a part is of an unknown type.

    Example:
        >>> read_turns([{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}, "What happens?"]}])
        [{'role': 'user', 'content': [{'type': 'video', 'video': 'clip.mp4'}, {'type': 'text', 'text': ...}]}]
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


def _read_part(part: str | Mapping[str, Any]) -> Part:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("video_url", "image_url"):
        kind, address = kind.removesuffix("_url"), part.get(kind)
        part = {"type": kind, kind: address.get("url") if isinstance(address, Mapping) else address}
    if kind == "text" and isinstance(part.get("text"), str):
        return dict(part)
    if kind not in _KEYS:
        raise PromptError(f"a part must be of type {_KINDS}, got {_short(part)}")
    key = next((key for key in _KEYS[kind] if part.get(key) is not None), None)
    if key is None:
        return {"type": kind}
    return {"type": kind, kind: base64.b64decode(part[key]) if key == "base64" else part[key]}


def load_media(turns: Sequence[Turn], **load: Callable[[Any], object]) -> list[Turn]:
    """Replace every video and image by what `load["video"]` and `load["image"]` read from it.

    Raises:
        PromptError: a part has no medium.
    """

    def loaded(part: Part) -> Part:
        kind = part["type"]
        if kind not in load:
            return part
        if kind not in part:
            raise PromptError(f"a part of type {kind} shows nothing; name its file under {' or '.join(_KEYS[kind])}")
        return {"type": kind, kind: load[kind](part[kind])}

    return [{**turn, "content": [loaded(part) for part in turn["content"]]} if _parts(turn) else turn for turn in turns]


def media(turns: Iterable[Turn], kind: str) -> list[Any]:
    """List all videos or all images of a conversation, in order."""
    return [part[kind] for turn in turns for part in _parts(turn) if part["type"] == kind]


def without_media(turns: Iterable[Turn]) -> list[Turn]:
    """Drop the media themselves: a chat template needs to know where they stand, not what they show."""
    plain = []
    for turn in turns:
        parts = [part if part["type"] == "text" else {"type": part["type"]} for part in _parts(turn)]
        plain.append({**turn, "content": parts} if parts else turn)
    return plain


def tell_times(turns: Sequence[Turn], kind: TimeInstruction, *, asked: bool) -> list[Turn]:
    """Put a description of every video's time before the text that follows the video.

    Args:
        asked: refuse a video without times instead of leaving it alone.
    Raises:
        UnknownNameError: there is no such instruction.
        PromptError: the instruction was asked for, but a video has no times.
    """
    told = []
    for turn in turns:
        parts: list[Part] = []
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
    """The line about a video's time that LLaVA-Video reads before the question; "" for "none".

    Args:
        kind: "frames", or "release", which repeats a slip of the paper's release: the height of a frame stands where
            the number of frames belongs.
    Raises:
        UnknownNameError: there is no such kind.
    Source: the text, missing spaces included, comes from VLMEvalKit's LLaVA-Video.
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
    """Refuse text that would become a special token: it could end a turn, or stand for a video that is not there.

    Raises:
        PromptError: a text holds such a token; the message names both, and the way out.
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


def reserved_tokens(tokenizer: PreTrainedTokenizerBase, placeholders: Iterable[str | None] = ()) -> set[str]:
    """Strings that the tokenizer reads as special tokens, and the placeholders of media."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token for token in (*added, *tokenizer.all_special_tokens, *placeholders) if token}


def _texts(turn: Turn) -> Iterator[str]:
    """The role of a turn and its texts; texts that follow each other are joined, as in the prompt."""
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


def _parts(turn: Turn) -> list[Part]:
    return [] if isinstance(turn["content"], str) else turn["content"]


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) < 100 else f"{repr(value)[:100]}..."
