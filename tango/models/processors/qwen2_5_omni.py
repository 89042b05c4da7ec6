"""Turns a question and videos into the inputs of Qwen2.5-Omni's thinker: as `qwen`, with marks of its own.

Sound is left to the stock processor, whose inputs a pruned model takes as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import BatchFeature

from tango.errors import MissingPartError
from tango.models.processors.llava import Images, Videos, chatml
from tango.models.processors.qwen import QwenForm, QwenProcessor
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import ProcessorMixin

IMAGE, VIDEO, START, END = "<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>"
# Of sound, where a checkpoint's preprocessor file does not say it; images and sound share that file.
SOUND = {"feature_size": 128, "sampling_rate": 16000, "hop_length": 160, "chunk_length": 300, "n_fft": 400}
FORM = QwenForm(processor="Qwen2_5OmniProcessor", seconds_per_step=True)


class QwenOmniProcessor(QwenProcessor):
    """Tokenizer and video preprocessing in one callable, as `QwenProcessor`, without sound.

    Of a video with times, `video_second_per_grid` says how many seconds a temporal step takes.
    """

    media_input_names = (
        "pixel_values_videos", "video_grid_thw", "video_second_per_grid", "video_timestamps_s", FIRST_EQUAL,
        "pixel_values", "image_grid_thw",
    )  # fmt: skip
    placeholders: ClassVar[tuple[str, str]] = (VIDEO, IMAGE)

    @staticmethod
    def usual_template(form: QwenForm) -> str:
        return chatml(START + VIDEO + END, START + IMAGE + END, system_turn=form.system_turn)

    def _build_stock(self) -> ProcessorMixin:
        import transformers

        if not hasattr(self.tokenizer, "audio_token"):
            raise MissingPartError("the stock processor needs a tokenizer that names its image, video and audio tokens")
        own = self.patches
        sizes = {"patch_size": own.size, "merge_size": own.merge, "temporal_patch_size": own.temporal}
        shared: dict[str, Any] = {**sizes, "image_mean": list(own.mean), "image_std": list(own.std)}
        sound = {name: value for name, value in self._image_settings.items() if name in SOUND}
        seen = {name: value for name, value in self._image_settings.items() if name not in SOUND}
        return transformers.Qwen2_5OmniProcessor(
            image_processor=transformers.Qwen2VLImageProcessor(**{**shared, **seen}),
            video_processor=transformers.Qwen2VLVideoProcessor(**shared),
            feature_extractor=transformers.WhisperFeatureExtractor(**{**SOUND, **sound}),
            tokenizer=self.tokenizer,
        )

    def _image_piece(self, stock: ProcessorMixin, inputs: dict[str, Any], number: int) -> str:
        """As `ChatProcessor`'s; the stock processor of transformers 5.17 cannot."""
        del stock
        return self.image_token * (int(inputs["image_grid_thw"][number].prod()) // self.patches.merge**2)

    def __call__(
        self, text: str | Sequence[str], videos: Videos = None, images: Images = None, **options: Any
    ) -> BatchFeature:
        """As `QwenProcessor.__call__`, for prompts with `<|VIDEO|>` and `<|IMAGE|>`."""
        inputs = super().__call__(text, videos, images, **options)
        del inputs["mm_token_type_ids"]  # the placeholders' own ids say it
        if "second_per_grid_ts" in inputs:
            inputs["video_second_per_grid"] = inputs.pop("second_per_grid_ts")
        elif "video_grid_thw" in inputs:  # stock code cannot do without
            inputs["video_second_per_grid"] = torch.ones(len(inputs["video_grid_thw"]))
        return inputs
