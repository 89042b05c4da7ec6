"""A model family: LLaVA-OneVision trained with a coarser grid, every frame's patches averaged four by four."""

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.llava_onevision.configuration_llava_onevision import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
)

import tango
from tango.models.llava_onevision import LlavaOnevisionAdapter


def pool(x: Tensor) -> Tensor:
    """Average blocks of 4 x 4 patches, (T, patches^2, C) -> (T, N, C)."""
    side = int(x.shape[1] ** 0.5)
    return F.avg_pool2d(x.unflatten(1, (side, side)).permute(0, 3, 1, 2), 4).flatten(2).transpose(1, 2)


# What transformers is to know. A family that it has needs none of this.
class CoarseOnevisionConfig(LlavaOnevisionConfig):
    model_type = "coarse_onevision"


class CoarseOnevisionModel(LlavaOnevisionModel):
    def apply_pooling(self, image_features: Tensor) -> Tensor:
        return pool(image_features)


class CoarseOnevisionForConditionalGeneration(LlavaOnevisionForConditionalGeneration):
    config_class = CoarseOnevisionConfig

    def __init__(self, config: CoarseOnevisionConfig):
        super().__init__(config)
        self.model = CoarseOnevisionModel(config)
        self.post_init()


AutoConfig.register("coarse_onevision", CoarseOnevisionConfig)
AutoModelForImageTextToText.register(CoarseOnevisionConfig, CoarseOnevisionForConditionalGeneration)


# What Tango is to know: how this family differs from the one that it is derived from.
@tango.register_adapter("coarse_onevision")
class CoarseOnevisionAdapter(LlavaOnevisionAdapter):
    """LLaVA-OneVision but for its pooling."""

    title = "Coarse OneVision"
    model_class = "CoarseOnevisionForConditionalGeneration"

    @classmethod
    def side(cls, config: CoarseOnevisionConfig) -> int:
        return config.vision_config.image_size // config.vision_config.patch_size // 4

    def pool(self, x: Tensor) -> Tensor:
        return pool(x)
