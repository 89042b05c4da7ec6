"""FlashVID's step inside the LLM: late, keep the visual tokens that the prompt's last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.annotations import Float, Int
from tango.containers import LayerTokens, Paper
from tango.methods.base import LayerPruner
from tango.methods.registry import register
from tango.ops.attention import attention_of_last_token
from tango.ops.budget import ceil_product
from tango.ops.selection import top_k


@register("flashvid-select")
@dataclass(frozen=True, kw_only=True)
class FlashVidSelectPruner(LayerPruner):
    """Keep the visual tokens that the prompt's last token attends to most, late in the LLM; drop the rest.

    This is FastV's rule with a count that is rounded up, and FlashVID's second half; the first, `flashvid`, works
    pre-LLM. After it, a ratio of 0.125 that enters an LLM of 28 layers makes a mean of 0.1.

    Source: appendix of arXiv:2602.08024 and its release, with the layer and ratio of its scripts for 28 layers. For
    Qwen3-VL's 36 layers these use layer 28 and ratio 0.1.
    Deviation: attention is compared in float32; the release rounds it to the model's dtype.
    Example:
        >>> states, kept = tango.FlashVidSelectPruner(layer=2)(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 17)
    """

    layer: int = 20
    retention_ratio: float = 0.3

    budget_rule: ClassVar[str] = "ceil(r M) of the M visual tokens that reach the layer"
    paper: ClassVar[Paper] = Paper(
        title="FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token "
        "Merging",
        venue="ICLR 2026",
        url="https://arxiv.org/abs/2602.08024",
        licence="MIT",
    )

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        attention = attention_of_last_token(tokens)
        K = max(1, ceil_product(len(attention), self.retention_ratio))
        kept = top_k(attention[None], K)[0].sort().values
        return tokens.hidden[tokens.visual[kept]], kept
