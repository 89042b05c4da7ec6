"""`Question`, one sample of a benchmark, and `Answer`, with its counts and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from tango.fingerprints import of_content

Message = Mapping[str, Any]  # of a chat template, or one part of its content


@dataclass(frozen=True, kw_only=True)
class Question:
    """One sample: a conversation with videos, and how to answer it.

    `messages` are as for a chat template: `{"role": "system" | "user", "content": parts}` with parts
    `{"type": "video", "video": video}` and `{"type": "text", "text": str}`; content may be a plain string, too. A video
    is whatever `tango.read_video` takes. Questions about images are not answered; their answer is an error that says
    so.

    Example:
        >>> content = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "what color is plain"}]
        >>> question = Question(messages=[{"role": "user", "content": content}], max_new_tokens=16)
    """

    messages: Sequence[Message]
    prefill: str = ""  # the first words of the answer, which the model continues, e.g. "Best option:("
    num_frames: int | None = None  # of each video; None: as the Answerer was told
    max_new_tokens: int = 128
    # temperature, top_p, top_k, num_beams and the like; `until`: strings at which the answer is cut
    generate_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 over all that determines the answer. Videos count by content, not by path, so this reads them."""
        asked = {**vars(self), "messages": [_by_content(message) for message in self.messages]}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=_plain).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question, or why there is none.

    Example:
        >>> answer = Answer(text="", error="VideoReadError: cannot read 'clip.mp4'")
        >>> answer.error or answer.text
        "VideoReadError: cannot read 'clip.mp4'"
    """

    text: str  # "" with an error
    error: str | None = None  # e.g. "VideoReadError: cannot read ..."
    input_tokens: int = 0  # prompt tokens that entered the LLM
    output_tokens: int = 0  # new tokens, the one that ends the answer included
    visual_tokens_before: int = 0
    visual_tokens_after: int = 0  # those that entered the LLM
    mean_visual_tokens: float = 0  # those that entered a layer, averaged over the LLM's layers
    # by stage, see `tango.profiling.STAGES`; each answer of a batch has an equal share
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    elapsed_ms: float = 0.0  # since the answer before it, by the clock
    peak_bytes: int = 0  # most memory in use so far: the GPU's, or the process's own on a CPU
    cached: bool = False  # from the journal, not computed in this run


def _by_content(message: Message) -> Message:
    """The message with fingerprints in place of its videos and images."""
    if isinstance(message["content"], str):
        return dict(message)
    content = [
        {**part, **{kind: of_content(part[kind]) for kind in ("video", "image") if kind in part}}
        for part in message["content"]
    ]
    return {**message, "content": content}


def _plain(value: object) -> object:
    """Turn a value that JSON lacks into one that it has: a mapping into a dictionary, others (a path) into text."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def frames_as_video(parts: Sequence[Message]) -> list[dict[str, object]]:
    """Join every run of two or more images among a message's parts to one video with these frames.

    Example:
        >>> frames_as_video([{"type": "image", "image": "1.png"}, {"type": "image", "image": "2.png"}])
        [{'type': 'video', 'video': ['1.png', '2.png']}]
    """
    found: list[dict[str, object]] = []
    for is_image, run in groupby(parts, key=lambda part: part["type"] == "image"):
        members = [dict(part) for part in run]
        if is_image and len(members) > 1:
            members = [{"type": "video", "video": [part["image"] for part in members]}]
        found += members
    return found
