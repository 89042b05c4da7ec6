"""Turns a question and videos into the inputs of a GLM-V model: as `qwen`, with GLM's marks, and times after frames.

Videos and images have one placeholder; only the marks around a video tell which is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tango.errors import CheckpointError
from tango.models.processors.llava import turns
from tango.models.processors.qwen import QwenForm, QwenProcessor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

IMAGE, VIDEO = "<|image|>", "<|video|>"
START_IMAGE, END_IMAGE = "<|begin_of_image|>", "<|end_of_image|>"
START_VIDEO, END_VIDEO = "<|begin_of_video|>", "<|end_of_video|>"
TOKENS = {  # by the fields of a config that hold their ids
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START_IMAGE,
    "image_end_token_id": END_IMAGE, "video_start_token_id": START_VIDEO, "video_end_token_id": END_VIDEO,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GlmForm(QwenForm):
    """How a checkpoint writes videos into its prompts."""

    whole_seconds: bool  # a frame's time is "2"; False: "2.0 seconds"
    frames_carry_time: bool = True
    min_tokens: int = 1  # stock code has a bound for whole videos, which only a few tiny frames are below


# By the name of the stock processor. It is the checkpoint's own choice: GLM-4.6V's models are of GLM-4.1V's and
# GLM-4.5V's types, `glm4v` and `glm4v_moe`.
FORMS = {
    "Glm4vProcessor": GlmForm(
        processor="Glm4vProcessor",
        video_processor="Glm4vVideoProcessor",
        image_processor="Glm4vImageProcessor",
        whole_seconds=True,
    ),
    "Glm46VProcessor": GlmForm(
        processor="Glm46VProcessor",
        video_processor="Glm46VVideoProcessor",
        image_processor="Glm46VImageProcessor",
        whole_seconds=False,
    ),
}


class GlmProcessor(QwenProcessor):
    """As `QwenProcessor`. Prompts contain one `<|video|>` per video, and one `<|image|>` per image.

    Every temporal step becomes a run of `<|image|>` between `<|begin_of_image|>` and `<|end_of_image|>`, and after it
    the time of its first frame: truncated to whole seconds, or with one decimal.
    """

    form: GlmForm
    placeholders: ClassVar[tuple[str, str]] = (VIDEO, IMAGE)
    marks_vary: ClassVar[bool] = False

    @staticmethod
    def usual_template(form: QwenForm) -> str:
        del form
        video, image = START_VIDEO + VIDEO + END_VIDEO, START_IMAGE + IMAGE + END_IMAGE
        return "[gMASK]<sop>" + turns("<|{{ message['role'] }}|>\nCONTENT", "<|assistant|>\n", video=video, image=image)

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
        """As `QwenProcessor.from_folder`.

        Raises:
            CheckpointError: the config knows the marks of videos under other ids than the tokenizer.
        """
        processor = super().from_folder(folder, config, tokenizer, form=form, default_num_frames=default_num_frames)
        for name, token in {"video_start_token_id": START_VIDEO, "video_end_token_id": END_VIDEO}.items():
            found, expected = processor.tokenizer.convert_tokens_to_ids(token), getattr(config, name)
            if found != expected:
                raise CheckpointError(
                    f"{name} of {folder / 'config.json'} is {expected}, but the tokenizer has {token} as {found}; "
                    "correct the config: videos are told from images by it"
                )
        return processor

    def _placeholders(self, grid: tuple[int, int, int], times: Tensor | None, num_frames: int) -> str:
        _, rows, columns = grid
        step = START_IMAGE + IMAGE * (rows * columns // self.patches.merge**2) + END_IMAGE
        times = torch.arange(num_frames) / 2 if times is None else times
        firsts = times[:: self.patches.temporal].tolist()
        told = (str(int(first)) if self.form.whole_seconds else f"{first:.1f} seconds" for first in firsts)
        return "".join(step + time for time in told)

    def _kinds(self, input_ids: Tensor) -> Tensor:
        ids = self.tokenizer.convert_tokens_to_ids
        start, end = (input_ids == ids(token) for token in (START_VIDEO, END_VIDEO))
        return (input_ids == ids(IMAGE)).int() * (1 + (start.cumsum(1) > end.cumsum(1)).int())
