"""Density-peaks clustering with k nearest neighbours (DPC-KNN), deterministic and in bounded memory.

Squared distances are counted in ticks: whole multiples of 2**-18 of a set's largest squared norm, several times the
error of the float32 product they come from. Rows that are equal then tie exactly, whatever the matrix library, and sums
of a few distances are exact in any order. Every tie goes to the lower row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tango.ops.similarity import gram
from tango.shapes import Bool, Float, Int

_TICKS = 2.0**18
_MAX_ELEMENTS = 1 << 24  # of a distance matrix held at once: 64 MiB, i.e. all of it up to 4096 rows
_MAX_ELEMENTS_GPU = 1 << 27


def dpc_knn(x: Float[Tensor, "M D"], num_clusters: int, *, k: int = 7) -> Int[Tensor, "num_clusters"]:
    """Pick cluster centres that are locally dense and far from anything denser.

    Distances are Euclidean, in float32. Ties break towards the lower row.

    Returns:
        Rows of `x`, in increasing order.
    Raises:
        ValueError: `num_clusters` is outside 1..M, or `k` is below 1.
    Source: density peaks with k nearest neighbours, section 4.2, eq. 4 of arXiv:2604.09547.
    Deviation: the release adds 1e-6 random noise to the density and returns centres by score.
    """
    centres, _ = density_peaks(x[None], num_clusters, k=k)
    return centres[0].sort().values


def density_peaks(
    x: Float[Tensor, "B M D"],
    num_clusters: int,
    *,
    k: int = 7,
    num_rows: Int[Tensor, "B"] | None = None,
    clusters: Int[Tensor, "B"] | None = None,
) -> tuple[Int[Tensor, "B C"], Int[Tensor, "B M"]]:
    """Cluster B sets of rows at once; no set changes what becomes of another.

    Args:
        num_rows: how many rows of each set count, those before its padding; None: all.
        clusters: how many of `num_clusters` clusters each set gets; None: all. What is returned beyond means nothing.
    Returns:
        The centres of each set, highest score first; and for every row the row of its nearest centre (a centre's own
        is itself).
    Raises:
        ValueError: `num_clusters` is outside 1..M, or `k` is below 1.
    Source: eq. 4 of arXiv:2604.09547. The densest row comes first whatever its delta, so none is computed.
    """
    M = x.shape[1]
    if not 1 <= num_clusters <= M:
        raise ValueError(f"num_clusters must lie in 1..{M} (the number of rows), got {num_clusters}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    place = torch.arange(M, device=x.device)
    padding = None if num_rows is None else place >= num_rows[:, None]
    ticks, tick = _tick_blocks(x, padding)
    neighbours = min(k, M - 1)

    distance_sum = torch.empty(x.shape[:2], device=x.device)  # to the nearest neighbours, in ticks
    for rows, block in ticks():
        nearest = block.topk(neighbours + 1, dim=-1, largest=False, sorted=False).values  # each row itself is one more
        if padding is not None:
            nearest.masked_fill_(nearest == torch.inf, 0)
        distance_sum[:, rows] = nearest.sum(-1)
    if padding is not None:
        distance_sum.masked_fill_(padding, torch.inf)
    order = distance_sum.sort(dim=-1, stable=True).indices  # densest first, padding last
    rank = torch.empty_like(order).scatter_(1, order, place.expand_as(order))

    delta = torch.empty_like(distance_sum)
    for rows, block in ticks():
        denser = rank[:, None, :] < rank[:, rows, None]
        delta[:, rows] = torch.where(denser, block, torch.inf).amin(-1)
    minus = -max(neighbours, 1) if num_rows is None else (1 - num_rows).clamp(-k, -1)[:, None]
    score = (distance_sum * (tick / minus)).exp_().mul_(delta.clamp_min_(0).sqrt_())
    if padding is not None:
        score.masked_fill_(padding, -torch.inf)
    score.scatter_(1, order[:, :1], torch.inf)  # eq. 4's second case: nothing is denser
    centres = score.sort(dim=-1, descending=True, stable=True).indices[:, :num_clusters]
    if clusters is None:
        return centres, _nearest_centre(ticks, centres)
    chosen = place[:num_clusters] < clusters[:, None]
    return centres, _nearest_centre(ticks, torch.where(chosen, centres, centres[:, :1]))


def max_elements(device: torch.device) -> int:
    """How many distances are held at once."""
    return _MAX_ELEMENTS if device.type == "cpu" else _MAX_ELEMENTS_GPU


def _tick_blocks(
    x: Float[Tensor, "B M D"], padding: Bool[Tensor, "B M"] | None
) -> tuple[Callable[[], Iterator[tuple[slice, Tensor]]], Float[Tensor, "B 1"]]:
    """Squared distances in ticks, as a function that iterates over blocks of rows; and one tick as a squared length.

    When all rows fit into one block it is computed once and handed out again, else every pass computes it anew.
    Padding is infinitely far from everything.
    """
    x = x.float()
    B, M, _ = x.shape
    squares = torch.linalg.vector_norm(x, dim=-1).square()
    largest = squares if padding is None else squares.masked_fill(padding, 0)
    tick = largest.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _TICKS
    if padding is not None:
        squares.masked_fill_(padding, torch.inf)

    def count(products: Tensor, rows: slice) -> Tensor:
        block = torch.add(squares[:, rows, None], products, alpha=-2, out=products).add_(squares[:, None, :])
        return block.div_(tick[:, :, None]).round_()

    num_rows = max(1, max_elements(x.device) // (B * M))
    if num_rows >= M:
        whole = count(gram(x), slice(0, M))
        return lambda: iter([(slice(0, M), whole)]), tick

    def recompute() -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, M, num_rows):
            rows = slice(start, min(start + num_rows, M))
            yield rows, count(x[:, rows] @ x.mT, rows)

    return recompute, tick


def _nearest_centre(
    ticks: Callable[[], Iterator[tuple[slice, Tensor]]], centres: Int[Tensor, "B C"]
) -> Int[Tensor, "B M"]:
    """The nearest of a set's centres, the lowest of the nearest; a centre may be listed more than once."""
    ordered = centres.sort(dim=-1).values
    nearest = []
    for _, block in ticks():
        to_centres = block.gather(2, ordered[:, None, :].expand(-1, block.shape[1], -1))
        nearest.append(ordered.gather(1, to_centres.argmin(-1)))
    return torch.cat(nearest, dim=1).scatter_(1, ordered, ordered)


def density_peaks_counting_self(
    x: Float[Tensor, "B M D"], num_clusters: int, *, k: int
) -> tuple[Int[Tensor, "B C"], Int[Tensor, "B M"]]:
    """`density_peaks` as other releases have it: a row is one of its own k neighbours, distances shrink by sqrt(D).

    Fewer than k rows are all neighbours. With k = 1 all densities are equal, so the lower row is the denser one.

    Source: releases of HoliTom (arXiv:2505.21334) and FastVID (arXiv:2503.11187).
    Deviation: they add 1e-6 random noise to the density.
    """
    k = min(k, x.shape[1])
    if k == 1 and num_clusters == 1:
        first = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        return first[:, :1], first
    if k < 2:
        raise ValueError(f"k must be at least 2 to pick {num_clusters} clusters, got {k}")
    # Its own distance of 0 adds nothing to the sum over neighbours, but counts in their mean: k, not k - 1.
    return density_peaks(x.float() * ((k - 1) / (k * x.shape[-1])) ** 0.5, num_clusters, k=k - 1)
