"""Qwen3.5: the tower and the prompts of Qwen3-VL, and a language model that is mostly linear attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tango.models.about import About
from tango.models.base import register_adapter
from tango.models.qwen3_vl import Qwen3VlAdapter

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutputWithPooling


@register_adapter("qwen3_5")
class Qwen3_5Adapter(Qwen3VlAdapter):
    """Stock `Qwen3_5ForConditionalGeneration`: no deepstack, and linear attention in three of four decoder layers.

    Such a layer carries one state from token to token. Tokens pruned before the LLM never reach it; pruning at a layer,
    by which time they have, is refused.
    """

    title: ClassVar[str] = "Qwen3.5"
    model_class: ClassVar[str] = "Qwen3_5ForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen3.5-*",),
        tokens="at most 14 x 14 for two",
        layer_pruning=False,
        notes="three of four layers are linear attention; a frame without tokens keeps its time",
    )

    def deeper_features(self, output: BaseModelOutputWithPooling) -> list[Tensor]:
        """None, so that `prefill_scope` hands nothing over: stock would pass it on to the kernels of linear layers."""
        del output
        return []


@register_adapter("qwen3_5_moe")
class Qwen3_5MoeAdapter(Qwen3_5Adapter):
    """Stock `Qwen3_5MoeForConditionalGeneration`: Qwen3.5 with a mixture of experts in its decoder."""

    title: ClassVar[str] = "Qwen3.5-MoE"
    model_class: ClassVar[str] = "Qwen3_5MoeForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("Qwen/Qwen3.5-*-A*B",),
        tokens="at most 14 x 14 for two",
        layer_pruning=False,
        notes="as Qwen3.5, with experts",
    )
