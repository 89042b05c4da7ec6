"""Qwen3-VL with experts, and Qwen3.5: the tower and the prompts of Qwen3-VL with other language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tango.models.base import register_adapter
from tango.models.qwen3_vl import Qwen3VlAdapter

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPooling


@register_adapter("qwen3_vl_moe")
class Qwen3VlMoeAdapter(Qwen3VlAdapter):
    """Stock `Qwen3VLMoeForConditionalGeneration`: Qwen3-VL with a mixture of experts in its decoder."""

    title: ClassVar[str] = "Qwen3-VL-MoE"
    model_class: ClassVar[str] = "Qwen3VLMoeForConditionalGeneration"


@register_adapter("qwen3_5")
class Qwen3_5Adapter(Qwen3VlAdapter):
    """Stock `Qwen3_5ForConditionalGeneration`: no deepstack, and linear attention in three of four decoder layers.

    Such a layer carries one state from token to token. Tokens pruned before the LLM never reach it; pruning at a layer,
    by which time they have, is refused.
    """

    title: ClassVar[str] = "Qwen3.5"
    model_class: ClassVar[str] = "Qwen3_5ForConditionalGeneration"

    def deeper_features(self, output: BaseModelOutputWithPooling) -> list[Tensor]:
        """None, so that `prefill_scope` hands nothing over: stock would pass it on to the kernels of linear layers."""
        del output
        return []


@register_adapter("qwen3_5_moe")
class Qwen3_5MoeAdapter(Qwen3_5Adapter):
    """Stock `Qwen3_5MoeForConditionalGeneration`: Qwen3.5 with a mixture of experts in its decoder."""

    title: ClassVar[str] = "Qwen3.5-MoE"
    model_class: ClassVar[str] = "Qwen3_5MoeForConditionalGeneration"
