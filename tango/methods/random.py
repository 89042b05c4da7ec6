"""Random sampling: the other baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count


@register("random")
@dataclass(frozen=True, kw_only=True)
class RandomPruner(Pruner):
    """Keep round(retention_ratio * T * N) tokens, drawn without replacement; drop the rest.

    The draw depends only on `seed` and the shape, and is the same on every device.

    Example:
        >>> len(tango.RandomPruner(retention_ratio=0.25, seed=7)(tokens).indices)
        72
    """

    seed: int = 0

    budget_rule: ClassVar[str] = "round(r T N), always exact"
    paper: ClassVar[Paper] = Paper(title="random sampling", venue="-")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features.flatten(0, 1)
        K = exact_count(len(x), self.retention_ratio)
        generator = torch.Generator().manual_seed(self.seed)
        indices = torch.randperm(len(x), generator=generator)[:K].sort().values.to(x.device)
        return PrunedTokens(features=x.index_select(0, indices), indices=indices)
