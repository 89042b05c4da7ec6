"""From questions to model inputs, one by one and as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.errors import OptionError
from tango.evaluation.questions import Message, Question
from tango.models.processors.messages import TimeInstruction
from tango.models.processors.qwen import VisionMarks
from tango.profiling import StageTimer
from tango.runtime.answering import prepare_chat
from tango.runtime.decoding import decoding_options
from tango.video.reading import load_video

if TYPE_CHECKING:
    from transformers import BatchFeature

    from tango.models.processors.protocol import ChatProtocol

_PER_TOKEN = {"attention_mask": 0, "mm_token_type_ids": 0}  # name -> value of the padding


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedQuestion:
    """A question with its model inputs, on the CPU."""

    question: Question
    inputs: BatchFeature  # with one row
    num_videos: int
    num_images: int
    generate_options: dict[str, object]
    stages_ms: dict[str, float]  # read, preprocess


@dataclass(frozen=True, kw_only=True)
class Preparer:
    """Reads the videos of questions and makes model inputs; safe to call from several threads."""

    processor: ChatProtocol
    num_frames: int
    video_backend: str
    time_instruction: TimeInstruction | None
    vision_marks: VisionMarks | None
    video_input: str  # name of the pixels, which are cast before they reach the model
    dtype: torch.dtype
    static_cache: bool = False
    images: bool = False  # whether questions may have images, which are then pruned, too

    def __post_init__(self) -> None:
        # The first use sets a tokenizer's padding; threads must not race for it.
        self.processor.tokenizer(["a"], padding=True)

    def __call__(self, question: Question) -> PreparedQuestion:
        """Prepare one question.

        Raises:
            VideoReadError: a video cannot be read.
            PromptError: a text holds a token that is reserved.
            OptionError: an option of `generate` is unknown.
            ValueError: the conversation has parts that cannot be asked about.
        """
        options, timer = decoding_options(static_cache=self.static_cache) | generate_options(question), StageTimer()
        num_frames = question.num_frames or self.num_frames
        with timer.stage("read"):
            messages = [self._with_videos(message, num_frames) for message in question.messages]
        with timer.stage("preprocess"):
            inputs = prepare_chat(
                self.processor,
                messages,
                prefill=question.prefill,
                time_instruction=self.time_instruction,
                vision_marks=self.vision_marks,
            )
            if inputs.get(self.video_input) is not None:  # half the memory while they wait; the model would cast alike
                inputs[self.video_input] = _cast(inputs[self.video_input], self.dtype)
        kinds = [part["type"] for m in messages if not isinstance(m["content"], str) for part in m["content"]]
        return PreparedQuestion(
            question=question,
            inputs=inputs,
            num_videos=kinds.count("video"),
            num_images=kinds.count("image"),
            generate_options=options,
            stages_ms=timer.ms(),
        )

    def _with_videos(self, message: Message, num_frames: int) -> Message:
        if isinstance(message["content"], str):
            return dict(message)
        return {**message, "content": [self._with_video(part, num_frames) for part in message["content"]]}

    def _with_video(self, part: Message, num_frames: int) -> Message:
        if part["type"] == "video":
            video = load_video(part["video"], num_frames=num_frames, usual=self.num_frames, backend=self.video_backend)
            return {**part, "video": video}
        if part["type"] != "text" and not (self.images and part["type"] == "image"):
            raise ValueError(
                f"parts must be of type video or text, got {part['type']!r}; images can be asked about where they are "
                "pruned, too (images=on)"
            )
        return dict(part)


def generate_options(question: Question) -> dict[str, object]:
    """Turn what toolkits pass into options of `generate`: no sampling options without sampling, no stop strings.

    Raises:
        OptionError: `generate` has no such option.
    """
    from transformers import GenerationConfig

    options = {name: value for name, value in question.generate_options.items() if value is not None}
    options.pop("until", None)
    if unknown := sorted(options.keys() - vars(GenerationConfig()).keys()):
        raise OptionError(f"generate has no option {', '.join(unknown)}; see transformers.GenerationConfig")
    temperature = options.get("temperature")
    sampled = options.get("do_sample", temperature is not None) and temperature != 0
    if not sampled:
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
    return {**options, "do_sample": bool(sampled), "max_new_tokens": question.max_new_tokens}


def collate(rows: Sequence[BatchFeature], pad_token_id: int) -> BatchFeature:
    """Join the inputs of single prompts to a batch, padded on the left."""
    if len(rows) == 1:
        return rows[0]
    batch = type(rows[0])()
    longest = max(row["input_ids"].shape[1] for row in rows)
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "input_ids" or name in _PER_TOKEN:
            fill = _PER_TOKEN.get(name, pad_token_id)
            batch[name] = torch.cat([F.pad(v, (longest - v.shape[1], 0), value=fill) for v in values])
        elif all(isinstance(v, Tensor) and v.shape[1:] == values[0].shape[1:] for v in values):
            batch[name] = torch.cat(values)
        else:  # one entry per video
            batch[name] = [item for value in values for item in value]
    return batch


def _cast(pixels: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor | list[Tensor]:
    return pixels.to(dtype) if isinstance(pixels, Tensor) else [one.to(dtype) for one in pixels]
