"""Density-peaks clustering with k nearest neighbours (DPC-KNN), deterministic and in bounded memory.

Squared distances are counted in ticks: whole multiples of 2**-18 of a set's largest squared norm, several times the
error of the float32 product they come from. Rows that are equal then tie exactly, whatever the matrix library, and sums
of a few distances are exact in any order. Every tie goes to the lower row. (That is for full float32 products, torch's
default: on a GPU where the user's process allows TF32, near decisions may fall otherwise.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tango.ops.similarity import gram
from tango.shapes import Bool, Float, Int

_TICKS = 2.0**18
# How many distances: a batch of sets is made up to; are held (1 GiB: all of one set up to 16384 rows); are looked at
# together.
_MAX_BATCH, _MAX_HELD, _MAX_BLOCK = 1 << 24, 1 << 28, 1 << 22
_MAX_BATCH_GPU, _MAX_BLOCK_GPU = 1 << 27, 1 << 26


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
    ticks = _Ticks(x, padding)
    neighbours = min(k, M - 1)

    nearest = torch.full((*x.shape[:2], neighbours + 1), torch.inf, device=x.device)  # each row itself is one more
    for rows, _, block in ticks.blocks():
        found = _smallest(block, min(neighbours + 1, block.shape[-1]))
        if block.shape[-1] < M:
            found = _smallest(torch.cat([nearest[:, rows], found], dim=-1), neighbours + 1)
        nearest[:, rows] = found
    if padding is None:
        distance_sum = nearest.sum(-1)  # in ticks
    else:  # a short set has fewer neighbours
        distance_sum = nearest.nan_to_num_(nan=torch.nan, posinf=0).sum(-1).masked_fill_(padding, torch.inf)
    order = distance_sum.sort(dim=-1, stable=True).indices  # densest first, padding last
    rank = torch.empty_like(order).scatter_(1, order, place.expand_as(order))

    delta = torch.full_like(distance_sum, torch.inf)
    for rows, columns, block in ticks.blocks():
        denser = rank[:, None, columns] < rank[:, rows, None]
        least = delta[:, rows]
        torch.minimum(least, torch.where(denser, block, torch.inf).amin(-1), out=least)
    minus = -max(neighbours, 1) if num_rows is None else (1 - num_rows).clamp(-k, -1)[:, None]
    score = (distance_sum * (ticks.tick / minus)).exp_().mul_(delta.clamp_min_(0).sqrt_())
    if padding is not None:
        score.masked_fill_(padding, -torch.inf)
    score.scatter_(1, order[:, :1], torch.inf)  # eq. 4's second case: nothing is denser
    centres = score.sort(dim=-1, descending=True, stable=True).indices[:, :num_clusters]
    if clusters is None:
        return centres, ticks.nearest_of(centres)
    chosen = place[:num_clusters] < clusters[:, None]
    return centres, ticks.nearest_of(torch.where(chosen, centres, centres[:, :1]))


def _smallest(x: Float[Tensor, "B R C"], count: int) -> Float[Tensor, "B R count"]:
    return x.topk(count, dim=-1, largest=False, sorted=False).values


def max_elements(device: torch.device) -> int:
    """How many distances the sets of one batch may have together."""
    return _MAX_BATCH if device.type == "cpu" else _MAX_BATCH_GPU


class _Ticks:
    """Squared distances in ticks between the rows of every set. Padding is infinitely far from everything.

    A matrix that fits is multiplied once and held; of another, every pass multiplies one half anew, block by block.
    """

    def __init__(self, x: Float[Tensor, "B M D"], padding: Bool[Tensor, "B M"] | None):
        B, M, _ = x.shape
        self._x = x.float()
        self._squares = torch.linalg.vector_norm(self._x, dim=-1).square()
        largest = self._squares if padding is None else self._squares.masked_fill(padding, 0)
        # One tick, as a squared length, (B, 1)
        self.tick = largest.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _TICKS
        if padding is not None:
            self._squares.masked_fill_(padding, torch.inf)
        on_cpu = x.device.type == "cpu"
        self._max_block = _MAX_BLOCK if on_cpu else _MAX_BLOCK_GPU
        most = _MAX_HELD if on_cpu else _MAX_BATCH_GPU
        self._held = self._count(gram(self._x), self._squares, self._squares) if most >= B * M * M else None

    def _count(
        self, products: Float[Tensor, "B R C"], squares: Float[Tensor, "B R"], of_columns: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B R C"]:
        block = torch.add(squares[:, :, None], products, alpha=-2, out=products).add_(of_columns[:, None, :])
        return block.div_(self.tick[:, :, None]).round_()

    def _parts(self, num_rows: int) -> list[slice]:
        """The rows of every set, at most so many at a time."""
        M, step = self._x.shape[1], max(1, num_rows)
        return [slice(start, min(start + step, M)) for start in range(0, M, step)]

    def blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and the distances between them, until all have come, in any order; the same in every pass."""
        B, M, _ = self._x.shape
        if self._held is not None:
            for rows in self._parts(self._max_block // (B * M)):
                yield rows, slice(0, M), self._held[:, rows]
            return
        parts = self._parts(math.isqrt(self._max_block // B))
        for i, rows in enumerate(parts):
            x, squares = self._x[:, rows], self._squares[:, rows]
            yield rows, rows, self._count(gram(x), squares, squares)
            for columns in parts[i + 1 :]:
                block = self._count(x @ self._x[:, columns].mT, squares, self._squares[:, columns])
                yield rows, columns, block
                yield columns, rows, block.mT.contiguous()

    def nearest_of(self, centres: Int[Tensor, "B C"]) -> Int[Tensor, "B M"]:
        """The row of the nearest of a set's centres, the lowest of the nearest; one may be listed more than once."""
        B, C = centres.shape
        ordered = centres.sort(dim=-1).values
        if self._held is None:
            x, squares = self._x.take_along_dim(ordered[:, :, None], dim=1), self._squares.gather(1, ordered)
        nearest = []
        for rows in self._parts(self._max_block // (B * C)):
            if self._held is None:
                distances = self._count(self._x[:, rows] @ x.mT, self._squares[:, rows], squares)
            else:
                block = self._held[:, rows]
                distances = block.gather(2, ordered[:, None, :].expand(-1, block.shape[1], -1))
            nearest.append(ordered.gather(1, distances.argmin(-1)))
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
