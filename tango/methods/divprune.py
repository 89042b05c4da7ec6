"""DivPrune: keep tokens that are as far from each other as possible; saliency plays no part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count
from tango.ops.checks import check_finite
from tango.ops.device import chunks
from tango.ops.similarity import unit_cosines, unit_rows, unit_self_cosines

MAX_BYTES = 512 << 20  # of the float32 matrix of all cosines: 11585 tokens, enough for 64 frames of LLaVA-Video


@register("divprune")
@dataclass(frozen=True, kw_only=True)
class DivPrunePruner(Pruner):
    """Keep the tokens that differ most from each other, picked one by one from the whole video; drop the rest.

    The first pick is the token least similar to any other; each further pick is the one least similar to all before it.

    Source: section 3 of arXiv:2503.02175: a greedy solution of the max-min diversity problem under cosine distance.
    Deviation: cosines are rounded to multiples of 2**-18 in float32, so that ties go to the earlier token; no token is
    picked twice. If the M x M matrix of cosines would exceed MAX_BYTES, each pick's cosines are computed when they are
    needed; that may decide otherwise between cosines that differ by no more than 2**-18.
    Example:
        >>> len(tango.DivPrunePruner(retention_ratio=0.25)(tokens).indices)
        72
    """

    budget_rule: ClassVar[str] = "round(r T N), always exact"
    paper: ClassVar[Paper] = Paper(
        title="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2503.02175",
        licence="CC-BY-NC-4.0",
    )

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features.flatten(0, 1)
        with torch.no_grad():
            unit = unit_rows(x)
            check_finite(unit.sum(), "features")
            indices = _max_min_picks(unit, exact_count(len(x), self.retention_ratio)).sort().values
        return PrunedTokens(features=x.index_select(0, indices), indices=indices)


def _max_min_picks(unit: Float[Tensor, "M D"], k: int) -> Int[Tensor, "k"]:
    """Pick k rows, in this order. The host never waits for the device."""
    M = len(unit)
    cosines = unit_self_cosines(unit) if M * M * 4 <= MAX_BYTES else None
    picks = [_loneliest(unit, cosines)]
    nearest = unit.new_full((M,), -torch.inf)  # of each row, the largest cosine with a row already picked
    while len(picks) < k:
        if cosines is not None:
            to_last = cosines.index_select(0, picks[-1])[0]
        else:
            to_last = unit_cosines(unit, unit.index_select(0, picks[-1]))[:, 0]
        nearest = torch.maximum(nearest, to_last).index_fill_(0, picks[-1], torch.inf)
        picks.append(nearest.argmin(keepdim=True))
    return torch.cat(picks)


def _loneliest(unit: Float[Tensor, "M D"], cosines: Float[Tensor, "M M"] | None) -> Int[Tensor, "1"]:
    """The row with the smallest cosine to the row most similar to it."""
    M = len(unit)
    nearest = []
    for rows in chunks(M, M * 4, unit.device):
        chunk = unit_cosines(unit[rows], unit) if cosines is None else cosines[rows].clone()
        chunk.diagonal(rows.start).fill_(-torch.inf)
        nearest.append(chunk.amax(dim=1))
    return torch.cat(nearest).argmin(keepdim=True)
