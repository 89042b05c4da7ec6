"""From a question and videos to model inputs: the preprocessing that the LLaVA models were trained with.

Own code, in torch alone: the stock video processors need torchvision, and their class defaults normalise with CLIP's
statistics. Pixels here are those of the original code: bicubic resize with antialiasing, mean and deviation 0.5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature

from tango.containers import Video
from tango.errors import UnknownNameError
from tango.ops.blocks import blocks
from tango.shapes import Float, UInt8

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'image' %}<image>\n{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


Videos = Sequence[Video | Tensor] | Video | Tensor | None


def preprocess_frames(frames: UInt8[Tensor, "T h w 3"], size: int) -> Float[Tensor, "T 3 size size"]:
    """Resize frames to a square and scale them to [-1, 1], a block of frames at a time."""
    T, h, w, _ = frames.shape
    pixels = torch.empty(T, 3, size, size)
    for block in blocks(T, h * w * 3, frames.device, cpu_bytes=64 << 20):
        resized = F.interpolate(
            frames[block].permute(0, 3, 1, 2), size=(size, size), mode="bicubic", antialias=True, align_corners=False
        )
        pixels[block] = resized
    return pixels.mul_(1 / 127.5).sub_(1)


TimeInstruction = Literal["none", "frames", "release"]


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


def chat_template(folder: Path) -> str | None:
    """The template that older processors keep in a file of their own; newer ones reach the tokenizer."""
    file = folder / "chat_template.json"
    return json.loads(file.read_text(encoding="utf-8"))["chat_template"] if file.is_file() else None


class ChatProcessor:
    """What the processors of all families share: a tokenizer, a chat template, and placeholders for videos.

    Prompts are padded on the left. The attribute `time_instruction` is what `tango.prepare` tells the model about the
    video's time (see `describe_time`).
    """

    def __init__(self, tokenizer: Any, *, video_token: str, chat_template: str, default_num_frames: int):
        self.tokenizer, self.video_token = tokenizer, video_token
        self.chat_template, self.default_num_frames = chat_template, default_num_frames
        self.time_instruction: TimeInstruction = "none"
        self.tokenizer.padding_side = "left"

    def match(self, text: str | Sequence[str], videos: Videos) -> tuple[list[str], list[Tensor], list[Tensor] | None]:
        """Prompts, frames of every video, and their times if all videos have them.

        Raises:
            ValueError: the numbers of placeholders and of videos differ.
        """
        texts = [text] if isinstance(text, str) else list(text)
        given = [] if videos is None else [videos] if isinstance(videos, (Video, Tensor)) else list(videos)
        count = sum(t.count(self.video_token) for t in texts)
        if count != len(given):
            raise ValueError(f"the prompt has {count} {self.video_token}, but {len(given)} videos are given")
        frames = [video.frames if isinstance(video, Video) else torch.as_tensor(video) for video in given]
        for f in frames:
            if f.dim() != 4 or f.shape[-1] != 3 or len(f) == 0 or f.dtype != torch.uint8:
                raise ValueError(f"a video must be uint8 frames (T, h, w, 3), got {f.dtype} of shape {tuple(f.shape)}")
        times = [video.timestamps_s for video in given if isinstance(video, Video)]
        return texts, frames, times if given and len(times) == len(given) else None

    def tokenize(self, texts: list[str], placeholders: Sequence[str], options: dict[str, Any]) -> BatchFeature:
        """Put every video's placeholders in place of its token, and tokenize."""
        remaining = iter(placeholders)
        expanded = []
        for text in texts:
            first, *rest = text.split(self.video_token)
            expanded.append(first + "".join(next(remaining) + piece for piece in rest))
        return BatchFeature(dict(self.tokenizer(expanded, **{"return_tensors": "pt", "padding": True, **options})))

    def apply_chat_template(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Render messages (parts of type "video" and "text") as a prompt."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def decode(self, ids: Any, **options: Any) -> str:
        """Text of one sequence of ids."""
        return self.tokenizer.decode(ids, **options)

    def batch_decode(self, ids: Any, **options: Any) -> list[str]:
        """Texts of a batch of ids."""
        return self.tokenizer.batch_decode(ids, **options)


class Processor(ChatProcessor):
    """LLaVA's tokenizer and video preprocessing in one callable, used like a transformers processor.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`, `pixel_values_videos` and
    `video_timestamps_s`; the last lets `tango.prune` see real time.

    Args:
        num_video_tokens: frames -> placeholders that a video takes in an unpruned prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_size: int,
        num_video_tokens: Callable[[int], int],
        default_num_frames: int,
        chat_template: str | None = None,
    ):
        template = chat_template or getattr(tokenizer, "chat_template", None) or CHATML
        super().__init__(
            tokenizer, video_token="<video>", chat_template=template, default_num_frames=default_num_frames
        )
        self.image_size, self.num_video_tokens = image_size, num_video_tokens

    def __call__(self, text: str | Sequence[str], videos: Videos = None, **options: Any) -> BatchFeature:
        """Tokenize prompts that contain one `<video>` per video, and preprocess the videos in that order.

        Raises:
            ValueError: the numbers of `<video>` and of videos differ.
        """
        texts, frames, times = self.match(text, videos)
        placeholders = [self.video_token * self.num_video_tokens(len(f)) for f in frames]
        inputs = self.tokenize(texts, placeholders, options)
        if frames:
            pixels = [preprocess_frames(f, self.image_size) for f in frames]
            same = len({len(p) for p in pixels}) == 1
            inputs["pixel_values_videos"] = torch.stack(pixels) if same else pixels
        if times is not None:
            inputs["video_timestamps_s"] = times
        return inputs
