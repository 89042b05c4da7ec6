"""FastV: after two layers, keep the visual tokens that the prompt's last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.annotations import Float, Int
from tango.containers import LayerTokens, Paper
from tango.methods.base import LayerPruner
from tango.methods.registry import register
from tango.ops.attention import attention_of_last_token
from tango.ops.budget import exact_count
from tango.ops.selection import top_k


@register("fastv")
@dataclass(frozen=True, kw_only=True)
class FastvPruner(LayerPruner):
    """Keep the visual tokens that the prompt's last token attends to most; drop the rest.

    Attention is that of the layer before, averaged over heads. Where FastV works alone, its ratio follows from the mean
    over all layers: 0.0308 at layer 2 of 28 for a mean of 0.1.

    Source: arXiv:2403.06764, with the layer of its release. The Tango paper does not say which layer it used; of the
    published values, only this one reaches a mean of 0.1 in 28 layers.
    Deviation: round(r M) tokens are kept; the release rounds M (1 - R) of the fraction R dropped, which in floating
    point can be one token off where r M ends in .5. One row of attention is computed in float32, not a layer's whole
    matrices; each layer writes its cache once, and layers after the pruned one cache their own keys and values (the
    release's files differ in both).
    Example:
        >>> states, kept = tango.FastvPruner(retention_ratio=0.25)(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 14)
    """

    layer: int = 2

    budget_rule: ClassVar[str] = "round(r M) of the M visual tokens that reach the layer"
    paper: ClassVar[Paper] = Paper(
        title="An Image is Worth 1/2 Tokens After Layer 2",
        venue="ECCV 2024",
        url="https://arxiv.org/abs/2403.06764",
        licence="none stated",
    )

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        attention = attention_of_last_token(tokens)
        kept = top_k(attention[None], exact_count(len(attention), self.retention_ratio))[0].sort().values
        return tokens.hidden[tokens.visual[kept]], kept
