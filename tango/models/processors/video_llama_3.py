"""Turns a question and videos into the inputs of a VideoLLaMA 3: every frame follows its time as text.

This is own code for the reasons given in `qwen.py`. Beyond those, the stock processor counts a second per frame when it
is not told the times, and by default drops tokens whose pixels repeat the frame before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BatchFeature

from tango.models.checkpoint import load_tokenizer
from tango.models.processors import stock
from tango.models.processors.llava import Images, Videos, chat_template, chatml
from tango.models.processors.qwen import HALF, IMAGE, VIDEO, Patches, QwenForm, QwenProcessor
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

MERGE = 2  # patches per side of a token of a video; a token of an image is one patch
FRAMES = 180  # at most; the authors take one a second
# Pixels of all frames together, and the least of one frame: 16384 tokens, and 16.
# Source: video_preprocessor_config.json of lkhl/VideoLLaMA3-2B-Image-HF.
SHARED_PIXELS, MIN_PIXELS = 16384 * 28**2, 16 * 28**2
FORM = QwenForm(
    processor="VideoLlama3Processor",
    video_processor="VideoLlama3VideoProcessor",
    system_turn=False,
    mean=HALF,
    std=HALF,
)


class VideoLlama3Processor(QwenProcessor):
    """Tokenizer and video preprocessing in one callable, as `QwenProcessor`, with the prompts of this family.

    `processor(text=..., videos=...)` returns `input_ids`, `attention_mask`, `pixel_values_videos`, `video_grid_thw`,
    `video_merge_sizes`, and of videos with times `video_timestamps_s` and `video_first_equal`.
    """

    media_input_names = (
        "pixel_values_videos", "video_grid_thw", "video_merge_sizes", "video_timestamps_s", FIRST_EQUAL,
        "pixel_values", "image_grid_thw", "image_merge_sizes",
    )  # fmt: skip

    @staticmethod
    def usual_template(form: QwenForm) -> str:
        return chatml(VIDEO + "\n", IMAGE + "\n", system_turn=form.system_turn)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        form: QwenForm = FORM,
        default_num_frames: int = FRAMES,
    ) -> VideoLlama3Processor:
        """Make a checkpoint's processor: pixel statistics and budgets from its preprocessor file."""
        settings = stock.video_settings(folder)
        size = settings.get("size") or {}
        patches = Patches(
            size=config.vision_config.patch_size,
            temporal=1,
            merge=MERGE,
            mean=tuple(settings.get("image_mean") or form.mean),
            std=tuple(settings.get("image_std") or form.std),
            min_pixels=settings.get("min_pixels") or size.get("shortest_edge") or MIN_PIXELS,
            shared_pixels=settings.get("max_pixels") or size.get("longest_edge") or SHARED_PIXELS,
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
        shared: dict[str, Any] = {"patch_size": own.size, "image_mean": list(own.mean), "image_std": list(own.std)}
        size = {"shortest_edge": own.min_pixels, "longest_edge": own.shared_pixels}
        return transformers.VideoLlama3Processor(
            image_processor=transformers.VideoLlama3ImageProcessor(**{**shared, **self._image_settings}),
            tokenizer=self.tokenizer,
            video_processor=transformers.VideoLlama3VideoProcessor(merge_size=own.merge, size=size, **shared),
        )

    def __call__(
        self, text: str | Sequence[str], videos: Videos = None, images: Images = None, **options: Any
    ) -> BatchFeature:
        """As `QwenProcessor.__call__`. Frames without times count as one second apart, as in stock code."""
        inputs = super().__call__(text, videos, images, **options)
        del inputs["mm_token_type_ids"]  # this family's positions do not depend on them
        if "video_grid_thw" in inputs:
            inputs["video_merge_sizes"] = torch.full((len(inputs["video_grid_thw"]),), MERGE)
        return inputs

    def _placeholders(self, grid: tuple[int, int, int], times: Tensor | None, num_frames: int) -> str:
        if times is None:
            warnings.warn("frames without times: the prompt counts them as one second apart", stacklevel=3)
        seconds = range(num_frames) if times is None else times.tolist()
        frame = VIDEO * (grid[1] * grid[2] // MERGE**2)
        return ",".join(f"Time {second:.1f}s:{frame}" for second in seconds)
