"""LLaVA-NeXT-Video: a CLIP tower without its last block, average pooling before the projector, no newlines."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tango.errors import UnsupportedModelError
from tango.models.about import About
from tango.models.base import register_adapter
from tango.models.fixed_grid import FixedGridAdapter, PositionRule
from tango.ops.saliency import PoolingQuery
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register_adapter("llava_next_video")
class LlavaNextVideoAdapter(FixedGridAdapter):
    """Stock `LlavaNextVideoForConditionalGeneration`.

    "p-attn" saliency is the attention of the CLS token in the last used block, and the CLS token's state is the frame
    embedding. Both are Tango's choice for a tower without SigLIP's head; no paper has measured them on this family.
    """

    title: ClassVar[str] = "LLaVA-NeXT-Video"
    model_class: ClassVar[str] = "LlavaNextVideoForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("llava-hf/LLaVA-NeXT-Video-*-hf",),
        tokens="12 x 12",
        notes="its processor is transformers' own and needs torchvision",
    )
    consumed: ClassVar[frozenset[str]] = frozenset(
        {
            "pixel_values", "pixel_values_videos", "image_sizes", "vision_feature_layer",
            "vision_feature_select_strategy", "video_timestamps_s", FIRST_EQUAL,
        }
    )  # fmt: skip
    default_num_frames: ClassVar[int] = 32
    pooling_query: ClassVar[PoolingQuery] = "cls"

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency, positions=positions)
        if model.config.spatial_pool_mode != "average":
            raise UnsupportedModelError(
                f"the llava_next_video adapter pools with spatial_pool_mode 'average', got "
                f"{model.config.spatial_pool_mode!r}"
            )

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        return config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride

    def project(self, hidden: Tensor) -> Tensor:
        return self.model.model.multi_modal_projector(self.pool(hidden))
