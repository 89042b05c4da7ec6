"""What is asked and what comes back: one sample of a benchmark, and one answer with its counts and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from tango.fingerprints import of_content


@dataclass(frozen=True, kw_only=True)
class Question:
    """One sample: a conversation with videos, and how to answer it.

    `messages` are as for a chat template: `{"role": "system" | "user", "content": parts}` with parts
    `{"type": "video", "video": video}` and `{"type": "text", "text": str}`; content may be a plain string, too. A video
    is whatever `tango.read_video` takes. Images are no parts that can be answered here; such a question gets an answer
    that says so.
    """

    messages: Sequence[Mapping[str, Any]]
    prefill: str = ""  # the first words of the answer, which the model continues, e.g. "Best option:("
    num_frames: int | None = None  # of each video; None: what the Answerer says
    max_new_tokens: int = 128
    # temperature, top_p, top_k, num_beams and the like; `until`: strings at which the answer is cut
    generate_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """SHA-256 over all that determines the answer. It reads the videos, which count by content, not by path."""
        asked = {**vars(self), "messages": [_by_content(message) for message in self.messages]}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=_plain).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a question, or why there is none."""

    text: str  # "" with an error
    error: str | None = None  # e.g. "VideoReadError: cannot read ..."
    input_tokens: int = 0  # prompt tokens that entered the LLM
    output_tokens: int = 0  # new tokens, the one that ends the answer included
    visual_tokens_before: int = 0
    visual_tokens_after: int = 0  # that entered the LLM
    mean_visual_tokens: float = 0  # that entered a layer, averaged over the LLM's layers
    # those of `tango.profiling.STAGES` that there were; of a batch each answer has an equal share
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    elapsed_ms: float = 0.0  # by the clock on the wall, since the answer before it
    peak_bytes: int = 0  # most memory in use so far: the GPU's, or the process's own on a CPU
    cached: bool = False  # from the journal, not computed in this run


def _by_content(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with a fingerprint in place of everything that is shown."""
    if isinstance(message["content"], str):
        return dict(message)
    content = [
        {**part, **{kind: of_content(part[kind]) for kind in ("video", "image") if kind in part}}
        for part in message["content"]
    ]
    return {**message, "content": content}


def _plain(value: Any) -> Any:
    """Values that JSON has no form for: mappings as dictionaries, anything else by its text, such as a path's."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def frames_as_video(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a message with every run of two or more images as one video, whose frames they are."""
    found: list[dict[str, Any]] = []
    for is_image, run in groupby(parts, key=lambda part: part["type"] == "image"):
        members = [dict(part) for part in run]
        if is_image and len(members) > 1:
            members = [{"type": "video", "video": [part["image"] for part in members]}]
        found += members
    return found
