"""SmolVLM2: a SigLIP tower, blocks of patches shuffled into one token each, and the time of a frame before it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tango.models.about import About
from tango.models.base import register_adapter
from tango.models.mixed_media import MixedMediaAdapter
from tango.models.processors.smolvlm import SmolVlmProcessor
from tango.ops.saliency import PoolingQuery

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@register_adapter("smolvlm")
class SmolVlmAdapter(MixedMediaAdapter):
    """Stock `SmolVLMForConditionalGeneration`.

    The prompt's text around each frame, its time among it, stays where a frame keeps no token. Patches have the
    positions of training also where stock code mixes up those of 27 x 27 grids (2.2B): in bfloat16, on transformers
    5.17 to 5.20 at least. Stock 5.20 refuses most videos of the 2.2B; pruned or with all tokens kept, Tango runs them.
    """

    title: ClassVar[str] = "SmolVLM2"
    model_class: ClassVar[str] = "SmolVLMForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("HuggingFaceTB/SmolVLM2-*-Instruct",),
        tokens="9 x 9 (2.2B) or 8 x 8",
        notes="every frame has its time beside it, as about a dozen tokens of text, which all stay",
    )
    consumed: ClassVar[frozenset[str]] = frozenset({"pixel_values", "pixel_attention_mask"})
    default_num_frames: ClassVar[int] = 64
    pooling_query: ClassVar[PoolingQuery] = "head"

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        return config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        return model.model.vision_model

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> SmolVlmProcessor:
        sizes = {"tokens_per_frame": cls.tokens_per_step(config), "default_num_frames": cls.usual_num_frames(config)}
        return SmolVlmProcessor.from_folder(folder, config, tokenizer, **sizes)

    def project(self, hidden: Tensor) -> Tensor:
        return self.model.model.connector(self.tower(self.model).post_layernorm(hidden))
