"""A pre-LLM method: keep what is near the middle of each frame."""

from dataclasses import dataclass

import torch

import tango


@tango.register("centre")
@dataclass(frozen=True, kw_only=True)
class CentrePruner(tango.Pruner):
    """Keep the tokens that are nearest to the centre of their frame."""

    budget_rule = "round(r T N), always exact"

    def prune(self, tokens: tango.VisualTokens) -> tango.PrunedTokens:
        x, (H, W) = tokens.features.flatten(0, 1), tokens.grid  # (T*N, D)
        rows, columns = torch.arange(H, device=x.device) / H, torch.arange(W, device=x.device) / W
        offsets = (rows - rows.mean()).square()[:, None] + (columns - columns.mean()).square()  # (H, W)
        offsets = offsets.flatten().repeat(len(tokens.features))  # (T*N,)
        K = max(1, round(self.retention_ratio * len(x)))
        indices = offsets.argsort(stable=True)[:K].sort().values  # strictly increasing
        return tango.PrunedTokens(features=x[indices], indices=indices)
