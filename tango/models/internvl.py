"""InternVL3 and InternVL3.5: an InternViT tower with a CLS token, and pixel shuffle before the projector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from tango.errors import PromptError, UnsupportedModelError
from tango.models.about import About
from tango.models.base import register_adapter
from tango.models.calls import Inputs
from tango.models.fixed_grid import PositionRule
from tango.models.media import MEDIA, Media
from tango.models.mixed_media import MixedMediaAdapter
from tango.models.processors.internvl import InternVlProcessor
from tango.ops.saliency import PoolingQuery

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@register_adapter("internvl")
class InternVlAdapter(MixedMediaAdapter):
    """Stock `InternVLForConditionalGeneration`.

    "p-attn" saliency is the attention of the CLS token in the last block, and the CLS token's state is the frame
    embedding. Both are Tango's choice for a tower without a pooling head; no paper has measured them on this family.

    Stock code of transformers 5.17 gives the tiles of several beams to the wrong rows; pruned generation does not.
    """

    title: ClassVar[str] = "InternVL3"
    model_class: ClassVar[str] = "InternVLForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("OpenGVLab/InternVL3-*-hf", "OpenGVLab/InternVL3_5-*-HF"),
        tokens="16 x 16",
        notes="frames are numbered, the model is not told their times; no layer pruning of gpt-oss decoders",
    )
    consumed: ClassVar[frozenset[str]] = frozenset(
        {"pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy"}
    )
    default_num_frames: ClassVar[int] = 32
    pooling_query: ClassVar[PoolingQuery] = "cls"

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency, positions=positions)
        vision, layer = model.config.vision_config, model.config.vision_feature_layer
        if layer != -1 or len({*vision.image_size}) != 1 or len({*vision.patch_size}) != 1:
            raise UnsupportedModelError(
                f"the internvl adapter handles square frames and patches and vision_feature_layer -1, got frames of "
                f"{tuple(vision.image_size)}, patches of {tuple(vision.patch_size)} and layer {layer}"
            )

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        return int(cls.patches_per_side(config) * config.downsample_ratio)

    @classmethod
    def tower_blocks(cls, model: PreTrainedModel) -> nn.ModuleList:
        return cls.tower(model).encoder.layer

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> InternVlProcessor:
        sizes = {"tokens_per_tile": cls.tokens_per_step(config), "default_num_frames": cls.usual_num_frames(config)}
        return InternVlProcessor.from_folder(folder, config, tokenizer, **sizes)

    def project(self, hidden: Tensor) -> Tensor:
        inner, hidden = self.model.model, self.tower(self.model).layernorm(hidden)
        patches = hidden.unflatten(1, (self.patches, self.patches))
        # The projector normalises across the patches of a token, so that nothing may be pooled after it.
        return inner.multi_modal_projector(
            inner.pixel_shuffle(patches, self.model.config.downsample_ratio).flatten(1, 2)
        )

    def media_pixels(self, inputs: Inputs, media: Media) -> list[Tensor]:
        """As `MixedMediaAdapter.media_pixels`; here the tiles of all prompts follow each other."""
        pixels, counts = inputs["pixel_values"], [count for row in media for _, count in row]
        if len(pixels) != sum(counts):
            raise PromptError(f"pixel_values has {len(pixels)} tiles, but {MEDIA} names {sum(counts)}: {media}")
        return list(pixels.split(counts))
