"""A learned pre-LLM method: a linear scorer, trained elsewhere, says which tokens matter."""

from dataclasses import dataclass

import tango


@tango.register("scorer")
@dataclass(frozen=True, kw_only=True)
class ScorerPruner(tango.Pruner):
    """Keep the tokens that a linear scorer likes best."""

    weights: str = ""  # a safetensors file with the tensor `direction` (D,)

    budget_rule = "round(r T N), always exact"

    def prune(self, tokens: tango.VisualTokens) -> tango.PrunedTokens:
        x = tokens.features.flatten(0, 1)  # (T*N, D)
        scores = x.float() @ self.tensors["direction"].float()
        K = max(1, round(self.retention_ratio * len(x)))
        indices = scores.topk(K).indices.sort().values  # strictly increasing
        return tango.PrunedTokens(features=x[indices], indices=indices)
