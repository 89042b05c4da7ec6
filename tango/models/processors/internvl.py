"""Turns a question and videos into the inputs of InternVL3, where frames of videos and tiles of images are one tensor.

This is own code, in torch alone: the stock video processor needs torchvision, resizes to 384 instead of the model's 448
pixels where a checkpoint does not say otherwise, and takes no videos of unequal length at once. The prompt is the stock
one, the text of the models' own release: frames are numbered, times are not told. The release takes frames from the
middle of equal parts of the video, as many as the caller says (its default is 32, its examples have 8); Tango's reader
includes both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature

from tango.annotations import Float, UInt8
from tango.errors import CheckpointError
from tango.models.checkpoint import load_tokenizer
from tango.models.media import MEDIA, media_in_order
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
from tango.video.repeats import FIRST_EQUAL, first_equal

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

VIDEO, TILE, START, END = "<video>", "<IMG_CONTEXT>", "<img>", "</img>"
# ImageNet's statistics, which the checkpoints name; the stock classes' defaults are CLIP's.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InternVlProcessor(ChatProcessor):
    """Tokenizer and video preprocessing in one callable, used like a transformers processor.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`, `pixel_values` (tiles, 3, h, w) of all
    frames and all images, `media`, which tells them apart (see `tango.models.media`), and, if the videos have times,
    `video_timestamps_s` and `video_first_equal`.
    """

    media_input_names = ("pixel_values", MEDIA, "video_timestamps_s", FIRST_EQUAL)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_size: int,
        tokens_per_tile: int,
        default_num_frames: int,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        chat_template: str | None = None,
        image_settings: dict[str, Any] | None = None,
    ):
        template = chat_template or getattr(tokenizer, "chat_template", None)
        super().__init__(
            tokenizer,
            video_token=VIDEO,
            image_token=TILE,
            chat_template=template or chatml(f"{VIDEO}\n", f"{TILE}\n", system_turn=False),
            default_num_frames=default_num_frames,
        )
        self.image_size, self.tokens_per_tile = image_size, tokens_per_tile
        self.mean, self.std, self._image_settings = tuple(mean), tuple(std), image_settings or {}

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        tokens_per_tile: int,
        default_num_frames: int,
    ) -> InternVlProcessor:
        """Make a checkpoint's processor: pixel statistics from its preprocessor file, sizes from the model's config.

        Raises:
            CheckpointError: the tokenizer lacks a mark that surrounds frames.
        """
        tokenizer, settings = tokenizer or load_tokenizer(folder), stock.video_settings(folder)
        if missing := [mark for mark in (START, END) if mark not in tokenizer.get_vocab()]:
            raise CheckpointError(f"the tokenizer of {folder} is not InternVL's: it lacks the token {missing[0]}")
        return cls(
            tokenizer,
            image_size=config.vision_config.image_size[0],
            tokens_per_tile=tokens_per_tile,
            default_num_frames=default_num_frames,
            mean=settings.get("image_mean") or _MEAN,
            std=settings.get("image_std") or _STD,
            chat_template=chat_template(folder),
            image_settings=stock.image_settings(folder),
        )

    @property
    def placeholder(self) -> str:
        return TILE

    def _build_stock(self) -> ProcessorMixin:
        from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

        size = {"height": self.image_size, "width": self.image_size}
        shared = {"size": size, "image_mean": list(self.mean), "image_std": list(self.std)}
        # Files say crop_to_patches=False, the class's default, but InternVL's processor always cuts images.
        images = {**shared, **self._image_settings, "crop_to_patches": True}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(**images),
            tokenizer=self.tokenizer,
            video_processor=InternVLVideoProcessor(**shared),
            image_seq_length=self.tokens_per_tile,
        )

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
        """Tokenize prompts that contain one `<video>` per video, and preprocess the videos in that order.

        A video has any form that `tango.read_video` takes; images stand in the prompts as `<IMG_CONTEXT>`.

        Args:
            video_timestamps: False: nothing that stock models do not know; a pruned model refuses such inputs, since
                they do not say which pixels are a video's.
            video_pixels: False: everything but the videos' pixels, from their sizes and times alone.
        Raises:
            PromptError: the numbers of `<video>` and of videos, or of `<IMG_CONTEXT>` and of images, differ.
            VideoReadError: one of them cannot be read.
        """
        check_options(options)
        texts, frames, times = self.match(text, videos, num_frames)
        pieces, extra = self.image_inputs(texts, images)
        inputs = self.tokenize(texts, {TILE: pieces, VIDEO: [self._frames(len(own)) for own in frames]}, options)
        first = [first_equal(own) if video_pixels else [] for own in frames]
        counts = [int(count) for count in extra.get("num_patches", ())]
        tiles = list(extra["pixel_values"].split(counts)) if counts else []
        kinds = {TILE: [("image", count) for count in counts], VIDEO: [("video", len(own)) for own in frames]}
        if (frames or tiles) and video_pixels:
            pixels = [self.preprocess(own, same) for own, same in zip(frames, first, strict=True)]
            rows = media_in_order(texts, {TILE: tiles, VIDEO: pixels})
            inputs["pixel_values"] = torch.cat([part for row in rows for part in row])
        if not video_timestamps:
            return inputs
        if frames or tiles:
            inputs[MEDIA] = list(media_in_order(texts, kinds))
        if times is not None:
            inputs["video_timestamps_s"] = times
            if video_pixels:
                inputs[FIRST_EQUAL] = first
        return inputs

    def preprocess(self, frames: UInt8[Tensor, "T h w 3"], first: Sequence[int]) -> Float[Tensor, "T 3 size size"]:
        """Resize frames to a square, in whole steps of 1/255 as images are, and normalise them.

        Args:
            first: what `first_equal` says of the frames.
        """
        pixels = resize_frames(frames, (self.image_size, self.image_size), first).round_().clamp_(0, 255)
        mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    def _frames(self, count: int) -> str:
        tile = START + TILE * self.tokens_per_tile + END
        return "\n".join(f"Frame{i + 1}: {tile}" for i in range(count))
