"""Turns a question and videos into the inputs of a Gemma 4 model: whole frames, each after its time.

This is own code, in torch alone: the stock video processor needs torchvision, and assumes 24 frames a second when it is
not told. Sizes, patches and the prompt are those of the stock processor (transformers, models/gemma4).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature

from tango.annotations import Float, Int, UInt8
from tango.errors import CheckpointError
from tango.models.checkpoint import load_tokenizer
from tango.models.processors import stock
from tango.models.processors.llava import (
    ChatProcessor,
    Images,
    Videos,
    chat_template,
    check_options,
    resize_frames,
)
from tango.video.repeats import FIRST_EQUAL, first_equal

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

VIDEO = "<|video|>"


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How frames become patches: sizes in pixels, patches per side of a token, the most tokens of a frame.

    Example:
        >>> Frames().frame_size(720, 1280)
        (288, 528)
    """

    size: int = 16
    kernel: int = 3
    max_tokens: int = 70  # of videos; the stock processor gives images 280

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens: as many as fit, with about the frame's aspect ratio."""
        side = self.size * self.kernel
        scale = math.sqrt(self.max_tokens * side**2 / (height * width))
        H, W = (math.floor(scale * x / side) for x in (height, width))
        if not H:
            return 1, min(width // height, self.max_tokens)
        return (H, W) if W else (min(height // width, self.max_tokens), 1)

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to resize a frame to."""
        H, W = self.grid(height, width)
        return H * self.kernel * self.size, W * self.kernel * self.size

    def patches(self, height: int, width: int) -> tuple[int, int, int]:
        """Rows and columns of patches of such a frame, and how many more patches pad it to the most that one has."""
        rows, columns = (x // self.size for x in self.frame_size(height, width))
        return rows, columns, self.max_tokens * self.kernel**2 - rows * columns

    def cut(
        self, frames: UInt8[Tensor, "T h w 3"], first: Sequence[int] | None = None
    ) -> Float[Tensor, "T patches values"]:
        """Resize frames and cut them into patches, row by row, padded; `first` is as in `resize_frames`.

        Pixels are from 0 to 1: the model itself shifts them.
        """
        rows, columns, padding = self.patches(*frames.shape[1:3])
        pixels = resize_frames(frames, (rows * self.size, columns * self.size), first).div_(255)
        patches = pixels.view(-1, 3, rows, self.size, columns, self.size).permute(0, 2, 4, 3, 5, 1)
        return F.pad(patches.flatten(3).flatten(1, 2), (0, 0, 0, padding))

    def positions(self, num_frames: int, height: int, width: int) -> Int[Tensor, "T patches 2"]:
        """Column and row of the patches of such frames, -1 for padding."""
        rows, columns, padding = self.patches(height, width)
        return F.pad(patch_positions(rows, columns), (0, 0, 0, padding), value=-1).expand(num_frames, -1, -1)


def patch_positions(rows: int, columns: int) -> Int[Tensor, "patches 2"]:
    """Column and row of every patch of a frame, row by row."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def videos_lie_flat() -> bool:
    """Whether the installed stock model takes the frames of all videos in one row, with `num_frames_per_video`, as
    transformers 5.20 does; 5.17 takes videos of equal length, stacked."""
    from transformers import Gemma4Model

    return "num_frames_per_video" in inspect.signature(Gemma4Model.get_video_features).parameters


class Gemma4Processor(ChatProcessor):
    """Tokenizer and video preprocessing in one callable, used like a transformers processor.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`, `mm_token_type_ids`,
    `pixel_values_videos` and `video_position_ids`; `num_frames_per_video` where the installed stock model takes it, or
    videos differ in length; and `video_timestamps_s` and `video_first_equal` (see `tango.models.reuse`) if the videos
    have times.

    Args:
        frames: how frames become patches.
    """

    media_input_names = (
        "pixel_values_videos", "video_position_ids", "num_frames_per_video", "video_timestamps_s", FIRST_EQUAL,
        "pixel_values", "image_position_ids", "mm_token_type_ids",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        frames: Frames,
        chat_template: str,
        default_num_frames: int = 32,
        image_settings: dict[str, Any] | None = None,
    ):
        tokenizer.add_tokens([VIDEO], special_tokens=True)  # as stock code does: tokenizers may know it as plain text
        super().__init__(
            tokenizer,
            video_token=VIDEO,
            image_token=tokenizer.image_token,
            chat_template=chat_template,
            default_num_frames=default_num_frames,
        )
        self.frames, self._image_settings = frames, image_settings or {}

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        default_num_frames: int = 32,
    ) -> Gemma4Processor:
        """Make a checkpoint's processor: sizes from the model's config, tokens of a frame from the processor's file.

        Raises:
            CheckpointError: the checkpoint has no chat template.
        """
        tokenizer = tokenizer or load_tokenizer(folder)
        template = chat_template(folder) or tokenizer.chat_template
        if template is None:
            raise CheckpointError(f"{folder} has no chat template; take an instruction-tuned checkpoint (-it)")
        vision, settings = config.vision_config, stock.video_settings(folder, or_images=False)
        sizes = {"size": vision.patch_size, "kernel": vision.pooling_kernel_size}
        return cls(
            tokenizer,
            frames=Frames(**sizes, max_tokens=settings.get("max_soft_tokens") or Frames.max_tokens),
            chat_template=template,
            default_num_frames=default_num_frames,
            image_settings=stock.image_settings(folder),
        )

    def _build_stock(self) -> ProcessorMixin:
        import transformers

        own = self.frames
        sizes = {"patch_size": own.size, "pooling_kernel_size": own.kernel}
        return transformers.Gemma4Processor(
            feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
            image_processor=transformers.Gemma4ImageProcessor(**{**sizes, **self._image_settings}),
            tokenizer=self.tokenizer,
            video_processor=transformers.Gemma4VideoProcessor(**sizes, max_soft_tokens=own.max_tokens),
        )

    def num_video_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Placeholders that a video of this size takes in an unpruned prompt."""
        return num_frames * math.prod(self.frames.grid(height, width))

    def image_inputs(self, texts: Sequence[str], images: Images) -> tuple[list[str], dict[str, Tensor]]:
        pieces, inputs = super().image_inputs(texts, images)
        inputs.pop("num_soft_tokens_per_image", None)  # no input of the model
        return pieces, inputs

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Videos = None,
        images: Images = None,
        *,
        num_frames: int | None = None,
        video_timestamps: bool = True,
        video_pixels: bool = True,
        **options: Any,
    ) -> BatchFeature:
        """Tokenize prompts that contain one `<|video|>` per video, and preprocess the videos in that order.

        Every frame is a run of placeholders between marks, after its time in minutes and seconds. A video has any form
        that `tango.read_video` takes; images stand in the prompts as the tokenizer's `image_token`.

        Args:
            video_pixels: False: everything but `pixel_values_videos`, from the videos' sizes and times alone.
        Raises:
            PromptError: the numbers of `<|video|>` and of videos, or of image tokens and of images, differ.
            VideoReadError: a video or an image cannot be read.
        """
        check_options(options)
        texts, frames, times = self.match(text, videos, num_frames)
        pieces, extra = self.image_inputs(texts, images)
        if frames and times is None:
            warnings.warn("frames without times: the prompt counts them as one second apart", stacklevel=2)
        seconds = [torch.arange(len(f)) for f in frames] if times is None else times
        runs = [self._run(*own) for own in zip(frames, seconds, strict=True)]
        inputs = self.tokenize(texts, {self.image_token: pieces, VIDEO: runs}, options)
        ids = inputs["input_ids"]
        image, video = (self.tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, VIDEO))
        inputs["mm_token_type_ids"] = (ids == image).int() + 2 * (ids == video).int()
        inputs.update(extra)
        if frames:
            inputs.update(self._videos(frames, pixels=video_pixels, repeats=times is not None and video_timestamps))
        if times is not None and video_timestamps:
            inputs["video_timestamps_s"] = times
        return inputs

    def _run(self, frames: Tensor, seconds: Tensor) -> str:
        """The placeholders of a video, with the marks and times of its frames."""
        placeholders = VIDEO * math.prod(self.frames.grid(*frames.shape[1:3]))
        frame = f"{self.tokenizer.boi_token}{placeholders}{self.tokenizer.eoi_token}"
        return " ".join(f"{int(s // 60):02d}:{int(s % 60):02d} {frame}" for s in seconds.tolist())

    def _videos(self, frames: list[Tensor], *, pixels: bool, repeats: bool) -> dict[str, Any]:
        """What the tower needs of the videos, in the form of the installed stock model where it takes such videos."""
        counts = [len(f) for f in frames]
        flat = videos_lie_flat() or len(set(counts)) > 1
        join = torch.cat if flat else torch.stack
        inputs: dict[str, Any] = {"video_position_ids": join([self.frames.positions(*f.shape[:3]) for f in frames])}
        if flat:
            inputs["num_frames_per_video"] = torch.tensor(counts)
        if pixels:
            first = [first_equal(f) for f in frames]
            inputs["pixel_values_videos"] = join([self.frames.cut(*own) for own in zip(frames, first, strict=True)])
            if repeats:
                inputs[FIRST_EQUAL] = first
        return inputs
