"""VideoLLaMA 3: a tower like Qwen's without windows, one frame per temporal step, and positions of plain text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import vision_utils

from tango.errors import OptionError, PromptError, UnsupportedModelError
from tango.models.about import About
from tango.models.base import EncodedImages, EncodedVideos, register_adapter
from tango.models.calls import Inputs
from tango.models.processors.video_llama_3 import FORM, FRAMES, MERGE, SHARED_PIXELS, VideoLlama3Processor
from tango.models.qwen2_5_vl import QwenVlAdapter
from tango.models.splice import attended_positions
from tango.ops.device import to_device
from tango.profiling import StageTimer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    from tango.containers import Signal


@register_adapter("video_llama_3")
class VideoLlama3Adapter(QwenVlAdapter):
    """Stock `VideoLlama3ForConditionalGeneration`. A frame without kept tokens keeps its time in the prompt.

    The model has a pruning of its own: its stock processor drops tokens whose pixels are like those of the frame
    before. Tango prunes whole videos, and refuses prompts in which tokens are missing already.

    Args:
        positions: "contiguous" or "kept", as for LLaVA.
    """

    title: ClassVar[str] = "VideoLLaMA 3"
    model_class: ClassVar[str] = "VideoLlama3ForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("lkhl/VideoLLaMA3-*-Image-HF",),
        tokens="9 x 9 of 180 frames; frames share 16384",
        notes="its own pruning of repeated patches is off in Tango's prompts, and refused in others",
    )
    position_rules: ClassVar[tuple[str, ...]] = ("contiguous", "kept")
    consumed: ClassVar[frozenset[str]] = QwenVlAdapter.consumed | {
        "video_merge_sizes", "image_merge_sizes", "video_compression_mask",
    }  # fmt: skip
    default_num_frames: ClassVar[int] = FRAMES
    stock_counts_placeholders: ClassVar[bool] = True  # for beams, in transformers 5.17

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        saliency: str = "p-attn",
        positions: Literal["contiguous", "kept"] = "contiguous",
    ):
        super().__init__(model, saliency=saliency)
        if positions not in ("contiguous", "kept"):
            raise OptionError(f"positions of {self.title} must be 'contiguous' or 'kept', got {positions!r}")
        self.position_rule = positions

    @classmethod
    def frames_per_step(cls, config: PretrainedConfig) -> int:
        del config
        return 1

    @classmethod
    def tokens_per_step(cls, config: PretrainedConfig) -> int:
        return (math.isqrt(SHARED_PIXELS // FRAMES) // (config.vision_config.patch_size * MERGE)) ** 2

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        return cls.root(model).vision_model

    @classmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        return cls.tower(model).encoder.layers

    @classmethod
    def attentions(cls, model: PreTrainedModel) -> list[nn.Module]:
        return [block.get_submodule("self_attn") for block in cls.tower_blocks(model)]

    def tower_inputs(self, grid_thw: Tensor, merge_sizes: Tensor | None = None) -> dict[str, Tensor]:
        """As `QwenVlAdapter.tower_inputs`; patches follow each other token by token, by the sizes of tokens."""
        return {
            "position_ids": vision_utils.get_vision_position_ids(
                grid_thw, self.merge if merge_sizes is None else merge_sizes
            ),
            "cu_seqlens": vision_utils.get_vision_cu_seqlens(grid_thw),
        }

    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        sizes, mask = inputs.get("video_merge_sizes"), inputs.get("video_compression_mask")
        if sizes is not None and any(size != MERGE for size in torch.as_tensor(sizes).tolist()):
            raise UnsupportedModelError(
                f"videos of VideoLLaMA 3 have one token for {MERGE} x {MERGE} patches, got video_merge_sizes "
                f"{torch.as_tensor(sizes).tolist()}"
            )
        if mask is not None and not bool(mask.all()):
            raise PromptError(
                f"video_compression_mask drops {int((~mask.bool()).sum())} of {mask.numel()} tokens: this prompt is "
                "pruned already, by VideoLLaMA 3's own rule. Make it with tango.prepare, or by the stock processor "
                "with use_token_compression=False"
            )
        return super().encode_videos(inputs, wants, timer)

    def video_features(self, pixels: Tensor, grid_thw: Tensor) -> BaseModelOutputWithPooling:
        sizes = torch.full((len(grid_thw),), MERGE)  # on the host, like the grids
        return self.root(self.model).get_video_features(pixels, grid_thw, sizes, return_dict=True)

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        """As `QwenVlAdapter.encode_images`; how many patches make a token, the inputs say."""
        if inputs.get("pixel_values") is None:
            return None
        for name in ("image_grid_thw", "image_merge_sizes"):
            if inputs.get(name) is None:
                raise ValueError(f"{name} is missing from the inputs; the processor returns it beside the pixels")
        pixels, grids = to_device(inputs["pixel_values"], self.device), inputs["image_grid_thw"]
        output = self.root(self.model).get_image_features(pixels, grids, inputs["image_merge_sizes"], return_dict=True)
        return EncodedImages(token_id=self.image_token_id, features=torch.cat(list(output.pooler_output)))

    @property
    def positions_are_kept(self) -> bool:
        return self.position_rule == "kept"

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Inputs) -> Tensor | None:
        del inputs
        return attended_positions(input_ids, attention_mask) if self.positions_are_kept else None

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> VideoLlama3Processor:
        return VideoLlama3Processor.from_folder(
            folder, config, tokenizer, form=FORM, default_num_frames=cls.default_num_frames
        )
