"""Turns a question and videos into SmolVLM2's inputs: square frames, and a prompt with the time before every frame.

This is own code: the stock processor needs torchvision and num2words, assumes 24 frames a second when it is not told,
names the number of frames of a batch's longest video for all of them, and takes no image beside a video.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from tango.annotations import Float, UInt8
from tango.containers import Video
from tango.errors import MissingPartError, PromptError
from tango.models.checkpoint import load_tokenizer
from tango.models.media import MEDIA, media_in_order
from tango.models.processors import stock
from tango.models.processors.llava import (
    ChatProcessor,
    Images,
    Videos,
    chat_template,
    check_options,
    flat_images,
    several,
)
from tango.video.images import read_image
from tango.video.reading import load_video
from tango.video.repeats import FIRST_EQUAL, first_equal
from tango.video.sampling import one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

VIDEO, IMAGE, FAKE, WHOLE = "<video>", "<image>", "<fake_token_around_image>", "<global-img>"
MAX_FRAMES = 999
_LONGEST = 4096  # pixels of a side, whatever a checkpoint asks for
_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{{ '' if message['content'][0]['type'] == 'image' else ' ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<{{ part['type'] }}>{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number_words(n: int) -> str:
    """A number below 1000 in words, as the package num2words writes it.

    Example:
        >>> number_words(64), number_words(120)
        ('sixty-four', 'one hundred and twenty')
    """
    if n < 20:
        return _UNITS[n]
    if n < 100:
        return _TENS[n // 10 - 2] + (f"-{_UNITS[n % 10]}" if n % 10 else "")
    return f"{_UNITS[n // 100]} hundred" + (f" and {number_words(n % 100)}" if n % 100 else "")


class SmolVlmProcessor(ChatProcessor):
    """Tokenizer and preprocessing in one callable, used like a transformers processor.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`; `pixel_values` (B, frames, 3, h, w), in
    which shorter rows are filled up with frames of zeros; and, if not told otherwise, what stock models do not know:
    `media`, which says what these are (see `tango.models.media`), `video_timestamps_s` and `video_first_equal`.

    Args:
        image_size: pixels per side of a frame.
        tokens_per_frame: N.
        settings: of the checkpoint's video preprocessor: `size` or `video_sampling`, which frames have before they are
            squared, `image_mean` and `image_std`.
        image_settings: of its image preprocessor.
    """

    media_input_names = ("pixel_values", MEDIA, "video_timestamps_s", FIRST_EQUAL)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_size: int,
        tokens_per_frame: int,
        default_num_frames: int = 64,
        template: str | None = None,
        settings: dict[str, Any] | None = None,
        image_settings: dict[str, Any] | None = None,
    ):
        template = template or getattr(tokenizer, "chat_template", None) or ""
        super().__init__(
            tokenizer,
            video_token=VIDEO,
            image_token=IMAGE,
            # Checkpoints have a template that drops videos; transformers replaces it, too.
            chat_template=template if "video" in template else _TEMPLATE,
            default_num_frames=default_num_frames,
        )
        self.image_size, self.tokens_per_frame = image_size, tokens_per_frame
        self._settings, self._image_settings = settings or {}, image_settings or {}

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: int,
    ) -> SmolVlmProcessor:
        """Make a checkpoint's processor from its files and the model's config."""
        return cls(
            tokenizer or load_tokenizer(folder),
            image_size=config.vision_config.image_size,
            template=chat_template(folder),
            settings=stock.video_settings(folder),
            image_settings=stock.image_settings(folder),
            **options,
        )

    @property
    def placeholder(self) -> str:
        return IMAGE

    def _sizes(self) -> dict[str, Any]:
        """Settings of both stock preprocessors where the checkpoint does not say."""
        half = [0.5, 0.5, 0.5]
        sizes = {"size": {"longest_edge": 4 * self.image_size}, "max_image_size": {"longest_edge": self.image_size}}
        return {**sizes, "image_mean": half, "image_std": half}

    def _build_stock(self) -> ProcessorMixin:
        import transformers

        sampling = {"fps": 1, "max_frames": self.default_num_frames, "video_size": {"longest_edge": self.image_size}}
        try:
            return transformers.SmolVLMProcessor(
                image_processor=transformers.SmolVLMImageProcessor(**{**self._sizes(), **self._image_settings}),
                tokenizer=self.tokenizer,
                video_processor=transformers.SmolVLMVideoProcessor(
                    **{**self._sizes(), "video_sampling": sampling, **self._settings}
                ),
                image_seq_len=self.tokens_per_frame,
            )
        except ImportError as error:
            raise MissingPartError(
                f"transformers' processor needs torchvision and num2words: {one_line(error)}"
            ) from error

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
        """Tokenize prompts that contain one `<video>` per video and one `<image>` per image, and preprocess these.

        A video has any form that `tango.read_video` takes. `options` are the tokenizer's.

        Args:
            video_timestamps: False: nothing that stock models do not know; a pruned model refuses such inputs, since
                they do not say which pixels are a video's.
            video_pixels: False: everything but `pixel_values`, from the videos' sizes and times alone.
        Raises:
            PromptError: the numbers of `<video>` and of videos, or of `<image>` and of images, differ, or a video has
                more than 999 frames.
            VideoReadError: one of them cannot be read.
        """
        check_options(options)
        usual = self.default_num_frames
        read = [load_video(video, num_frames=num_frames, usual=usual) for video in several(videos)]
        texts, frames, times = self.match(text, read)
        if frames and times is None:
            warnings.warn("frames without times: the prompt counts them as one second apart", stacklevel=2)
        tiles, pieces = self._tiles(texts, images)
        placeholders = [self._describe(video) for video in read]
        inputs = self.tokenize(texts, {IMAGE: pieces, VIDEO: placeholders}, options)
        first = [first_equal(own) if video_pixels else [] for own in frames]
        if (frames or tiles) and video_pixels:
            squared = [self.square(own, same) for own, same in zip(frames, first, strict=True)]
            empty = torch.zeros(0, 3, self.image_size, self.image_size)
            rows = media_in_order(texts, {IMAGE: tiles, VIDEO: squared})
            inputs["pixel_values"] = pad_sequence([torch.cat([empty, *row]) for row in rows], batch_first=True)
        if not video_timestamps:
            return inputs
        if frames or tiles:
            kinds = {IMAGE: [("image", len(own)) for own in tiles], VIDEO: [("video", len(own)) for own in frames]}
            inputs[MEDIA] = list(media_in_order(texts, kinds))
        if times is not None:
            inputs["video_timestamps_s"] = times
            if video_pixels:
                inputs[FIRST_EQUAL] = first
        return inputs

    def square(self, frames: UInt8[Tensor, "T h w 3"], first: Sequence[int]) -> Float[Tensor, "T 3 side side"]:
        """Resize frames twice, as in training, with Pillow's Lanczos: to a longest edge, then to a square; normalise.

        Args:
            first: what `first_equal` says of the frames.
        """
        from PIL import Image

        size, distinct = self._before_square(*frames.shape[1:3]), sorted(set(first))
        pixels = torch.empty(len(distinct), 3, self.image_size, self.image_size)
        for row, t in enumerate(distinct):
            image = Image.fromarray(frames[t].cpu().numpy())
            for height, width in (size, (self.image_size, self.image_size)):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            pixels[row] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        known = {**self._sizes(), **self._settings}
        mean, std = (255 * torch.tensor(known[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        pixels.sub_(mean).div_(std)
        return pixels if len(distinct) == len(frames) else pixels[[distinct.index(f) for f in first]]

    def _before_square(self, height: int, width: int) -> tuple[int, int]:
        sampled = self._settings.get("video_sampling") or {}
        size = self._settings.get("size") or sampled.get("video_size") or self._sizes()["size"]
        if not size.get("longest_edge"):
            return size["height"], size["width"]
        longest = min(size["longest_edge"], _LONGEST)
        shorter = int(longest / (max(height, width) / min(height, width)))
        shorter = max(shorter + shorter % 2, 1)
        return (shorter, longest) if width >= height else (longest, shorter)

    def _describe(self, video: Video | Tensor) -> str:
        """The text that stands for a video."""
        if isinstance(video, Video):
            times, duration = video.timestamps_s.tolist(), video.duration_s
        else:
            times = list(range(len(video)))
            duration = times[-1]
        if len(times) > MAX_FRAMES:
            raise PromptError(f"SmolVLM's prompt names the number of frames: at most {MAX_FRAMES}, got {len(times)}")
        shown = "".join(f"\nFrame from {int(s // 60):02d}:{int(s % 60):02d}:{self._whole()}" for s in times)
        length = timedelta(seconds=int(duration))
        return (
            f"You are provided the following series of {number_words(len(times))} frames from a {length} [H:MM:SS] "
            f"video.\n{shown}\n\n"
        )

    def _whole(self) -> str:
        return f"{FAKE}{WHOLE}{IMAGE * self.tokens_per_frame}{FAKE}"

    def _tiles(self, texts: Sequence[str], images: Images) -> tuple[list[Tensor], list[str]]:
        """The tiles (n, 3, h, w) of every image, and the text that stands for it: transformers' image processor."""
        flat = [] if images is None else list(flat_images(images))
        self._count(texts, IMAGE, len(flat), "images")
        if not flat:
            return [], []
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        processor = SmolVLMImageProcessorPil(**{**self._sizes(), **self._image_settings})
        tiles, pieces = [], []
        for image in flat:
            made = processor([[read_image(image)]], return_row_col_info=True, return_tensors="pt")
            tiles.append(made["pixel_values"][0])
            pieces.append(self._split(made["rows"][0][0], made["cols"][0][0]))
        return tiles, pieces

    def _split(self, rows: int, columns: int) -> str:
        tile = IMAGE * self.tokens_per_frame
        lines = ["".join(f"{FAKE}<row_{r}_col_{c}>{tile}" for c in range(1, columns + 1)) for r in range(1, rows + 1)]
        return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "") + self._whole()
