"""EVS: keep the whole first frame, and of later ones the tokens that changed most since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.annotations import Float
from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count, floor_count
from tango.ops.checks import check_finite
from tango.ops.device import chunks
from tango.ops.selection import top_k
from tango.ops.similarity import paired_cosines, unit_rows


@register("evs")
@dataclass(frozen=True, kw_only=True)
class EvsPruner(Pruner):
    """Keep the whole first frame, and the tokens that differ most from the token at their place one frame before.

    Later frames may keep nothing. A single frame is kept whole, and a ratio below 1 / T means the first frame alone;
    with `exact_budget`, as many evenly spaced tokens of it as the budget has. The comparison is with the frame before,
    not with the last token that was kept, so a slow change may be dropped altogether.

    Source: arXiv:2510.14624, as `compute_retention_mask` of transformers (Nemotron-H Omni) and vLLM have it.
    Deviation: both cut r T N as computed in double precision, which is one token less where a whole number falls short
    by rounding (127 of 640 at a pruning rate of 0.8, here 128); cosines are computed in float32 whatever the model's
    dtype, and rounded to multiples of 2**-18, so that ties go to the earlier token.
    Example:
        >>> pruned = tango.EvsPruner(retention_ratio=0.25)(tokens)
        >>> (pruned.indices // 36).bincount(minlength=8)  # tokens kept of each frame
        tensor([36,  ...])
    """

    budget_rule: ClassVar[str] = "floor(r T N), at least the first frame"
    paper: ClassVar[Paper] = Paper(
        title="Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
        venue="arXiv 2025",
        url="https://arxiv.org/abs/2510.14624",
        licence="Apache-2.0",
    )

    @property
    def about_time(self) -> str:
        return "keeps the first frame whole"

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        x, device = tokens.features.flatten(0, 1), tokens.features.device
        K = floor_count(T * N, self.retention_ratio)
        if self.exact_budget:
            K = exact_count(T * N, self.retention_ratio)
        if self.exact_budget and K < N:
            indices = (torch.arange(K, device=device) * 2 + 1) * N // (2 * K)  # of the first frame
        elif K <= N:
            indices = torch.arange(N, device=device)
        else:
            with torch.no_grad():
                alike = _cosines_to_the_frame_before(tokens.features).flatten()  # (T - 1) * N, from the second frame
                check_finite(alike.sum(), "features")
                later = top_k(-alike[None], K - N)[0].sort().values + N
            indices = torch.cat([torch.arange(N, device=device), later])
        return PrunedTokens(features=x.index_select(0, indices), indices=indices)


def _cosines_to_the_frame_before(x: Float[Tensor, "T N D"]) -> Float[Tensor, "later N"]:
    """Cosine of every token, from the second frame on, with the token at its place one frame before."""
    T, N, D = x.shape
    found = []
    for chunk in chunks(T - 1, N * D * 8, x.device):
        unit = unit_rows(x[chunk.start : chunk.stop + 1])
        found.append(paired_cosines(unit[1:], unit[:-1]))
    return torch.cat(found)
