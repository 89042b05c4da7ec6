"""The model that VLMEvalKit sees: messages in, text out, answered by a `tango.evaluation.Answerer`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from tango.evaluation import Answer, Answerer, MethodConfig, Question, frames_as_video

# Predictions where there is no answer. An empty one would count as right in MVBench, and any word might be part of an
# option; the toolkit takes a lone Z for "none of the options", before it looks for words and with a judge, too.
EMPTY = "[Z] empty"
FAILED = "[Z] failed"

# Text that comes back from a table file as a missing value or a formula, and then counts as right in MVBench.
_NO_TEXT_IN_A_TABLE = re.compile(r"#?n/?a|[-+]?nan|none|null|<na>|[={].*", re.IGNORECASE | re.DOTALL)

Message = list[dict[str, Any]]


class Tango(BaseModel):
    """A video LLM with a pruning method. Loaded when the first question comes, so a finished run loads nothing.

    Args:
        method: what prunes, and how.
        journal: folder of the answers given so far.
        rank: number of this process.
        max_new_tokens: of each answer.
        video_first: the video goes before all text, as in the toolkit's own class for LLaVA; else where the message
            has it, as in the one for Qwen-VL. As in both, all text is one user turn, whatever roles the message names.
        **arguments: of `tango.evaluation.Answerer`.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(
        self,
        *,
        method: MethodConfig,
        journal: Path,
        rank: int,
        max_new_tokens: int = 128,
        video_first: bool = False,
        **arguments: Any,
    ):
        super().__init__()
        self.nframe = 32  # the toolkit puts the data set's number here
        self._options = {"method": method, "journal": journal, "rank": rank, **arguments}
        self._max_new_tokens = max_new_tokens
        self._video_first = video_first
        self.shows_frames = False  # whether several images are the frames of a video: of a video data set they are
        self.ready: tuple[Message, Answer] | None = None  # the next message, if it was answered ahead

    @cached_property
    def answerer(self) -> Answerer:
        """The loaded model."""
        return Answerer(**self._options)

    def generate(self, message: Message, dataset: str | None = None) -> str:  # noqa: ARG002
        """The prediction for a message. Takes the place of the toolkit's, which ends a run over a missing file."""
        if self.ready is not None and self.ready[0] is message:
            return prediction(self.ready[1])
        return prediction(self.answerer.answer(self.question(message)))

    generate_inner = generate

    def question(self, message: Sequence[Mapping[str, Any]]) -> Question:
        """A message of the toolkit as a question. Its texts follow each other without anything in between."""
        parts: list[dict[str, Any]] = []
        for item in message:
            kind, value = item["type"], item["value"]
            if kind != "text":
                parts.append({"type": kind, kind: value})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += value
            elif value:
                parts.append({"type": "text", "text": value})
        if self.shows_frames:
            parts = frames_as_video(parts)
        if self._video_first:
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            parts = [part for part in parts if part["type"] != "text"] + [{"type": "text", "text": text}]
        return Question(
            messages=[{"role": "user", "content": parts}],
            num_frames=self.nframe,
            max_new_tokens=self._max_new_tokens,
        )


def prediction(answer: Answer) -> str:
    """An answer as text that survives the toolkit's table files and is never taken for right by accident."""
    if answer.error is not None:
        return FAILED
    text = answer.text.strip()
    if not any(character.isalnum() for character in text):
        return EMPTY
    return f"[{text}]" if _NO_TEXT_IN_A_TABLE.fullmatch(text) else text
