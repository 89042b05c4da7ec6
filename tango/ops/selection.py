"""Choosing tokens to keep as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from tango.ops.blocks import upload
from tango.ops.clustering import density_peaks
from tango.shapes import Float, Int


def mask_sinks(saliency: Float[Tensor, "T N"], sink_positions: tuple[int, ...]) -> Float[Tensor, "T N"]:
    """Set the saliency of attention sinks to zero, in a copy.

    Source: appendix B.3 of arXiv:2604.09547.
    """
    if not sink_positions:
        return saliency
    return saliency.index_fill(1, upload(sink_positions, saliency.device), 0)


def top_k(scores: Float[Tensor, "B N"], k: int) -> Int[Tensor, "B k"]:
    """Positions of the k highest scores of every row, best first. Ties: the lower position."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def diverse_top_k(
    scores: Float[Tensor, "B N"], x: Float[Tensor, "B N D"], k: int, *, alpha: float = 1.5, num_neighbors: int = 7
) -> Int[Tensor, "B k"]:
    """Positions of k tokens per row that score high and differ from each other.

    The floor(alpha * k) highest scores are candidates; they are clustered into k groups by their rows of `x`, and the
    best of each group is kept. `alpha = 1` is a plain top-k.

    Raises:
        ValueError: `alpha` is below 1 or `k` outside 0..N.
    Source: section 4.2, eq. 5 of arXiv:2604.09547.
    """
    if alpha < 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    if not 0 <= k <= scores.shape[1]:
        raise ValueError(f"k must lie in 0..{scores.shape[1]} (the number of tokens), got {k}")
    num_candidates = min(int(alpha * k), scores.shape[1])
    candidates = top_k(scores, num_candidates)  # best first, so a candidate's place is its rank
    if num_candidates <= k:
        return candidates
    rows = candidates[:, :, None].expand(-1, -1, x.shape[-1])
    centres, nearest = density_peaks(x.gather(1, rows), k, k=num_neighbors)
    rank = torch.arange(num_candidates, device=x.device).expand_as(nearest)
    best = torch.full_like(nearest, num_candidates).scatter_reduce_(1, nearest, rank, "amin")
    return candidates.gather(1, best.gather(1, centres))
