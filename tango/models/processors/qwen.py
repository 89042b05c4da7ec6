"""Turns a question and videos into the inputs of a Qwen-VL model: frames of any shape, cut into patches.

This is own code, in torch alone: the stock video processors need torchvision, and assume 24 frames a second when they
are not told. Frames are resized to multiples of one merge unit with at most 448 x 448 pixels, as in arXiv:2604.09547.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import BatchFeature

from tango.annotations import Float, UInt8
from tango.errors import UnknownNameError
from tango.models.checkpoint import load_tokenizer
from tango.models.mrope import seconds_per_step
from tango.models.processors import stock
from tango.models.processors.llava import (
    ChatProcessor,
    Images,
    Videos,
    chat_template,
    chatml,
    check_options,
    resize_frames,
)
from tango.video.repeats import FIRST_EQUAL, first_equal, first_equal_steps

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

MAX_PIXELS = 448 * 448
IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

VisionMarks = Literal["nested", "flat"]


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How frames become patches: sizes in pixels, frames per temporal step, patches per side of a merge unit.

    Example:
        >>> Patches(size=14).frame_size(720, 1280)
        (336, 588)
    """

    size: int
    temporal: int = 2
    merge: int = 2
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    min_pixels: int = 128 * 28 * 28  # per frame; the families' own lower bound for videos
    max_pixels: int = MAX_PIXELS
    shared_pixels: int | None = None  # in place of `max_pixels`: what the frames of a video share equally

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to resize a frame to: multiples of a merge unit, with about the frame's aspect ratio.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"frames of {height} x {width} pixels are too narrow: at most 200 : 1")
        side = self.size * self.merge
        h, w = (max(side, round(x / side) * side) for x in (height, width))
        if h * w > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            h, w = (max(side, math.floor(x / shrink / side) * side) for x in (height, width))
        elif h * w < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            h, w = (math.ceil(x * grow / side) * side for x in (height, width))
        return h, w

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The grid of patches of a video of this size: temporal steps, rows, columns."""
        own = self if self.shared_pixels is None else replace(self, max_pixels=self.shared_pixels // num_frames)
        h, w = own.frame_size(height, width)
        return math.ceil(num_frames / self.temporal), h // self.size, w // self.size

    def cut(
        self, frames: UInt8[Tensor, "frames h w 3"], first: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "patches features"], tuple[int, int, int]]:
        """Resize and normalise frames; return their patches, merge unit by merge unit, and the grid of patches.

        The last frame is repeated until it fills a temporal step. `first` is as in `resize_frames`.
        """
        t, rows, columns = self.grid(*frames.shape[:3])
        missing = -len(frames) % self.temporal
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        first = None if first is None else [*first, *[first[-1]] * missing]
        pixels = resize_frames(frames, (rows * self.size, columns * self.size), first)
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pixels.sub_(mean).div_(std)
        sides = (rows // self.merge, self.merge, self.size, columns // self.merge, self.merge, self.size)
        patches = pixels.view(t, self.temporal, 3, *sides).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return patches.reshape(t * rows * columns, -1), (t, rows, columns)


@dataclass(frozen=True, kw_only=True)
class QwenForm:
    """How a family writes videos into its prompts; the first fields name the stock classes."""

    processor: str
    video_processor: str = "Qwen2VLVideoProcessor"
    image_processor: str = "Qwen2VLImageProcessor"
    frames_carry_time: bool = False  # every temporal step is a run of placeholders of its own, after its time as text
    seconds_per_step: bool = False  # positions follow real time, by the input `second_per_grid_ts`
    system_turn: bool = True  # a conversation without a system turn gets one
    min_tokens: int = 128  # of a frame, or of frames that are encoded together: the family's own bound for videos
    mean: tuple[float, ...] = CLIP_MEAN  # of pixels, like `std`: where a checkpoint does not say
    std: tuple[float, ...] = CLIP_STD


class QwenProcessor(ChatProcessor):
    """Tokenizer and video preprocessing in one callable, used like a transformers processor.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`, `mm_token_type_ids`,
    `pixel_values_videos` and `video_grid_thw`; if the videos have times, `video_timestamps_s`, `video_first_equal` (see
    `tango.models.reuse`), and `second_per_grid_ts` for a family that takes it.

    Attributes:
        vision_marks: which marks surround a video whose frames carry their time. "flat": every frame follows its time,
            between `<|vision_start|>` and `<|vision_end|>` of its own. "nested": another pair surrounds the whole
            video, as in transformers 5.17 and later.
    """

    media_input_names: Sequence[str] = (
        "pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "video_timestamps_s", FIRST_EQUAL,
        "pixel_values", "image_grid_thw", "mm_token_type_ids",
    )  # fmt: skip
    placeholders: ClassVar[tuple[str, str]] = (VIDEO, IMAGE)  # for which a template's prompts have one per medium
    marks_vary: ClassVar[bool] = True  # where frames carry their time

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        form: QwenForm,
        patches: Patches,
        default_num_frames: int = 32,
        chat_template: str | None = None,
        image_settings: dict[str, Any] | None = None,
    ):
        video, image = self.placeholders
        super().__init__(
            tokenizer,
            video_token=video,
            image_token=image,
            chat_template=chat_template or getattr(tokenizer, "chat_template", None) or self.usual_template(form),
            default_num_frames=default_num_frames,
        )
        self.form, self.patches, self._image_settings = form, patches, image_settings or {}
        if form.frames_carry_time and self.marks_vary:
            self.vision_marks: VisionMarks = "nested"

    @staticmethod
    def usual_template(form: QwenForm) -> str:
        """The chat template for a checkpoint without one."""
        return chatml(START + VIDEO + END, START + IMAGE + END, system_turn=form.system_turn)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        form: QwenForm,
        default_num_frames: int = 32,
    ) -> QwenProcessor:
        """Make a checkpoint's processor: pixel statistics from its preprocessor file, sizes from the model's config."""
        settings = stock.video_settings(folder)
        vision = config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        patches = Patches(
            size=vision.patch_size,
            temporal=vision.temporal_patch_size,
            merge=vision.spatial_merge_size,
            mean=tuple(settings.get("image_mean") or form.mean),
            std=tuple(settings.get("image_std") or form.std),
            min_pixels=form.min_tokens * side**2,
        )
        return cls(
            tokenizer or load_tokenizer(folder),
            form=form,
            patches=patches,
            default_num_frames=default_num_frames,
            chat_template=chat_template(folder),
            image_settings=stock.image_settings(folder),
        )

    def _build_stock(self) -> ProcessorMixin:
        import transformers

        own = self.patches
        sizes = {"patch_size": own.size, "merge_size": own.merge, "temporal_patch_size": own.temporal}
        shared = {**sizes, "image_mean": list(own.mean), "image_std": list(own.std)}
        return getattr(transformers, self.form.processor)(
            image_processor=getattr(transformers, self.form.image_processor)(**{**shared, **self._image_settings}),
            tokenizer=self.tokenizer,
            video_processor=getattr(transformers, self.form.video_processor)(**shared),
        )

    def num_video_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Placeholders that a video of this size takes in an unpruned prompt."""
        return math.prod(self.patches.grid(num_frames, height, width)) // self.patches.merge**2

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Videos = None,
        images: Images = None,
        *,
        num_frames: int | None = None,
        video_timestamps: bool = True,
        video_pixels: bool = True,
        vision_marks: VisionMarks | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Tokenize prompts that contain one `<|video_pad|>` per video, and preprocess the videos in that order.

        A video has any form that `tango.read_video` takes; images stand in the prompts as `<|image_pad|>`.

        Args:
            video_pixels: False: everything but `pixel_values_videos`, from the videos' sizes and times alone.
            vision_marks: overrides the attribute, for Qwen3-VL.
        Raises:
            PromptError: the numbers of `<|video_pad|>` and of videos, or of `<|image_pad|>` and of images, differ.
            VideoReadError: a video or an image cannot be read.
            UnknownNameError: there are no such marks.
        """
        check_options(options)
        texts, frames, times = self.match(text, videos, num_frames)
        pieces, extra = self.image_inputs(texts, images)
        grids = [self.patches.grid(*f.shape[:3]) for f in frames]
        if hasattr(self, "vision_marks"):
            marks = self.vision_marks if vision_marks is None else vision_marks
            check_marks(marks)
            if marks == "flat":  # `_placeholders` puts marks around every frame
                texts = [t.replace(START + VIDEO + END, VIDEO) for t in texts]
        if self.form.frames_carry_time and frames and times is None:
            warnings.warn("frames without times: the prompt counts them as half a second apart", stacklevel=2)
        placeholders = [
            self._placeholders(grid, None if times is None else times[i], len(frames[i]))
            for i, grid in enumerate(grids)
        ]
        inputs = self.tokenize(texts, {self.image_token: pieces, self.video_token: placeholders}, options)
        inputs["mm_token_type_ids"] = self._kinds(inputs["input_ids"])
        inputs.update(extra)
        if frames and video_pixels:
            first = [first_equal(f) for f in frames]
            cut = [self.patches.cut(f, own)[0] for f, own in zip(frames, first, strict=True)]
            inputs["pixel_values_videos"] = torch.cat(cut)
            if times is not None and video_timestamps:
                inputs[FIRST_EQUAL] = [first_equal_steps(own, self.patches.temporal) for own in first]
        if frames:
            inputs["video_grid_thw"] = torch.tensor(grids)
        if times is not None:
            if video_timestamps:
                inputs["video_timestamps_s"] = times
            if self.form.seconds_per_step:
                steps = [grid[0] for grid in grids]
                seconds = seconds_per_step({"video_timestamps_s": times}, steps, self.patches.temporal, warn=False)
                inputs["second_per_grid_ts"] = torch.tensor(seconds)
        return inputs

    def _placeholders(self, grid: tuple[int, int, int], times: Tensor | None, num_frames: int) -> str:
        t, rows, columns = grid
        frame = self.video_token * (rows * columns // self.patches.merge**2)
        if not self.form.frames_carry_time:
            return frame * t
        times = torch.arange(num_frames) / 2 if times is None else times
        times = torch.cat([times, times[-1:].expand(t * self.patches.temporal - num_frames)])
        middles = times.view(t, self.patches.temporal)[:, [0, -1]].mean(dim=1).tolist()
        return "".join(f"<{seconds:.1f} seconds>{START}{frame}{END}" for seconds in middles)

    def _kinds(self, input_ids: Tensor) -> Tensor:
        """0 for text, 1 for image and 2 for video placeholders; stock models compute positions from these."""
        image, video = (self.tokenizer.convert_tokens_to_ids(token) for token in (self.image_token, self.video_token))
        return (input_ids == image).int() + 2 * (input_ids == video).int()


def check_marks(name: str | None) -> None:
    """Raise UnknownNameError unless this names vision marks of Qwen3-VL; None: those of the processor's attribute."""
    if name is not None and name not in get_args(VisionMarks):
        raise UnknownNameError("vision marks", str(name), get_args(VisionMarks))
