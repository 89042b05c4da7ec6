"""The FastV variant that Tango combines with: dropped tokens are merged into kept ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from tango.annotations import Float, Int
from tango.containers import LayerTokens, Paper
from tango.methods.base import LayerPruner, Limits
from tango.methods.registry import register
from tango.ops.attention import attention_of_last_token
from tango.ops.budget import exact_count


@register("fastv-merge")
@dataclass(frozen=True, kw_only=True)
class FastvMergePruner(LayerPruner):
    """Keep the visual tokens that the prompt's last token attends to most; average the others into their nearest.

    round(retention_ratio * M) tokens are kept, at least one, in order. A dropped token's state joins the kept state of
    highest cosine similarity: new = merge_weight * kept + (1 - merge_weight) * mean(kept and joined), in float32.

    Source: section 5.1 of arXiv:2604.09547 names the FastV variant; merging is as in the Tango release.
    Deviation: the release runs the layer before without a causal mask; here that is the option `noncausal_layer`, off.
    Example:
        >>> states, kept = tango.FastvMergePruner(layer=2)(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 27)
    """

    layer: int = 18  # section 5.1
    retention_ratio: float = 0.5  # section 5.1
    noncausal_layer: bool = False  # type: ignore[misc]  # an option here; the release: True
    merge_weight: float = 0.6  # of the kept state (release); 1: drop without merging, as in FastV

    limits: ClassVar[Limits] = {"merge_weight": (0, 1)}
    budget_rule: ClassVar[str] = "round(r M) of the M visual tokens that reach the layer"
    paper: ClassVar[Paper] = Paper(
        title="An Image is Worth 1/2 Tokens After Layer 2",
        venue="ECCV 2024",
        url="https://arxiv.org/abs/2403.06764",
        licence="none stated",
    )

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        hidden, attention = tokens.hidden[tokens.visual], attention_of_last_token(tokens)
        M, K = len(hidden), exact_count(len(hidden), self.retention_ratio)
        order = attention.argsort(descending=True, stable=True)  # equal attention: the earlier token is kept
        kept, dropped = order[:K].sort().values, order[K:].sort().values
        states = hidden.index_select(0, kept)
        if self.merge_weight == 1 or K == M:
            return states, kept
        with torch.no_grad():
            unit = F.normalize(hidden.float(), dim=-1)
            nearest = (unit.index_select(0, dropped) @ unit.index_select(0, kept).T).argmax(-1)
            ones = torch.ones(len(dropped), 1, device=hidden.device)
            counts = torch.ones(K, 1, device=hidden.device).index_add(0, nearest, ones)
        sums = states.float().index_add(0, nearest, hidden.index_select(0, dropped).float())
        merged = torch.lerp(sums / counts, states.float(), self.merge_weight).to(hidden.dtype)
        return torch.where(counts > 1, merged, states), kept
