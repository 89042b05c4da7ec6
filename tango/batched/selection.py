"""Choosing salient, mutually different tokens in many sets at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.batched.clustering import Gather, Ints, density_peaks_of_sets, runs
from tango.ops.device import to_device, to_device_together
from tango.ops.selection import top_k


def diverse_top_k(
    scores: Float[Tensor, "R"],
    sizes: Ints,
    counts: Ints,
    gather: Gather,
    *,
    alpha: float = 1.5,
    num_neighbors: int = 7,
) -> Int[Tensor, "K"]:
    """Pick `counts[i]` positions of each set, a run of `sizes[i]` scores, that score high and differ from each other.

    The floor(alpha * k) highest scores are candidates; they are clustered into k groups by their rows, and the best of
    each group is kept. `alpha = 1` is a plain top-k.

    Args:
        gather: returns the (n, D) rows at n positions.
    Raises:
        ValueError: `alpha` is below 1, or a set has fewer positions than it is to keep.
    Source: section 4.2, eq. 5 of arXiv:2604.09547.
    """
    if alpha < 1:
        raise ValueError(f"alpha must be at least 1, got {alpha}")
    if (bad := (counts < 0) | (counts > sizes)).any():
        i = int(bad.argmax())
        raise ValueError(f"counts must lie in 0..{sizes[i]} (the number of tokens), got {counts[i]}")
    num_candidates = np.minimum((alpha * counts).astype(np.int64), sizes)
    open_ = num_candidates > counts  # in other sets, all candidates are kept
    starts = sizes.cumsum() - sizes
    ranked = _ranked(scores, sizes)
    sure, candidates = to_device_together(
        runs(starts[~open_], counts[~open_]), runs(starts[open_], num_candidates[open_]), device=scores.device
    )
    if not open_.any():
        return ranked[sure]
    pool = ranked[candidates]
    centres, nearest = density_peaks_of_sets(
        lambda ids: gather(pool[ids]), num_candidates[open_], counts[open_], k=num_neighbors, device=scores.device
    )
    rank = torch.arange(len(pool), device=scores.device)  # within a set, the lower the better
    best = pool[torch.full_like(rank, len(pool)).scatter_reduce_(0, nearest, rank, "amin")[centres]]
    return torch.cat([ranked[sure], best]) if len(sure) else best


def _ranked(scores: Float[Tensor, "R"], sizes: Ints) -> Int[Tensor, "R"]:
    """Positions ordered by set, and within a set by score, best first. Ties: the lower position."""
    if (sizes == sizes[0]).all():
        first = torch.arange(0, len(scores), int(sizes[0]), device=scores.device)
        return (top_k(scores.view(len(sizes), -1), int(sizes[0])) + first[:, None]).flatten()
    by_score = scores.sort(descending=True, stable=True).indices
    set_of = to_device(np.repeat(np.arange(len(sizes)), sizes), scores.device)
    return by_score[set_of[by_score].sort(stable=True).indices]
