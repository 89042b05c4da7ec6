"""Uniform sampling: evenly spaced tokens, the baseline that any signal must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count


@register("uniform")
@dataclass(frozen=True, kw_only=True)
class UniformPruner(Pruner):
    """Keep round(retention_ratio * T * N) tokens, evenly spaced over the flattened video; drop the rest.

    Example:
        >>> tango.UniformPruner(retention_ratio=0.25)(tokens).indices[:5]
        tensor([ 2,  6, 10, 14, 18])
    """

    budget_rule: ClassVar[str] = "round(r T N), always exact"
    paper: ClassVar[Paper] = Paper(title="uniform sampling, a baseline of figure 7 of Tango", venue="-")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features.flatten(0, 1)
        K = exact_count(len(x), self.retention_ratio)
        indices = (torch.arange(K, device=x.device) * 2 + 1) * len(x) // (2 * K)
        return PrunedTokens(features=x.index_select(0, indices), indices=indices)
