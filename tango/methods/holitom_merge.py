"""HoliTom's intra-LLM part: keep what the last token attends to, and merge the others into it one by one."""

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
from tango.ops.similarity import unit_cosines, unit_rows


@register("holitom-merge")
@dataclass(frozen=True, kw_only=True)
class HolitomMergePruner(LayerPruner):
    """Keep the visual tokens that the prompt's last token attends to most; average the others into them one by one.

    Each dropped token joins the kept token of highest cosine similarity. They join in order, and each time the kept
    state becomes the mean of itself and the newcomer: of m members the j-th has weight 2^-(m - j + 1), the kept state
    2^-m. HoliTom as a whole is `tango.prune(model, "holitom", mean_retention_ratio=0.1, layer_pruner="holitom-merge")`.

    Source: arXiv:2505.21334 and its release, where this ratio is the fraction dropped.
    Deviation: the release runs the layer before without a causal mask; here that is the option `noncausal_layer`, off.
    The sequence of means is computed as one weighted sum, in float32. At least one token is kept.
    Example:
        >>> states, kept = tango.HolitomMergePruner(layer=2)(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 27)
    """

    layer: int = 18
    retention_ratio: float = 0.5
    noncausal_layer: bool = False  # type: ignore[misc]  # an option here; the release: True

    budget_rule: ClassVar[str] = "round(r M) of the M visual tokens that reach the layer"
    paper: ClassVar[Paper] = Paper(
        title="HoliTom: Holistic Token Merging for Fast Video Large Language Models",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2505.21334",
        licence="Apache-2.0",
    )

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        hidden, attention = tokens.hidden[tokens.visual], attention_of_last_token(tokens)
        M, K = len(hidden), exact_count(len(hidden), self.retention_ratio)
        order = top_k(attention[None], M)[0]
        kept, dropped = order[:K].sort().values, order[K:].sort().values
        states = hidden[kept]
        if K == M:
            return states, kept
        with torch.no_grad():
            unit = unit_rows(hidden)
            nearest = unit_cosines(unit[dropped], unit[kept]).argmax(-1)
            by_target = nearest.argsort(stable=True)  # the members of each target side by side, in order
            target = nearest[by_target]
            sizes = torch.zeros(K, device=hidden.device).index_add(0, nearest, torch.ones_like(nearest).float())
            ends = sizes.cumsum(0)[target]
            halvings = ends - torch.arange(M - K, device=hidden.device)  # from the member's own on
        parts = hidden[dropped[by_target]].float() * torch.exp2(-halvings)[:, None]
        merged = (states.float() * torch.exp2(-sizes)[:, None]).index_add(0, target, parts)
        return torch.where(sizes[:, None] > 0, merged.to(hidden.dtype), states), kept
