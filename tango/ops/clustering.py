"""Density-peaks clustering with k nearest neighbours (DPC-KNN), deterministic and in bounded memory.

Squared distances are rounded to whole ticks. A tick is 2**-18 of a power of four near a set's largest squared norm:
several times the error of the float32 product behind a distance. So equal rows tie exactly, whatever the matrix
library, and sums of a few distances are exact in any order. Every tie goes to the lower row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.ops.similarity import gram, products

TICK_LENGTH = 2.0**-9  # a tick is the square of this, for rows of length 1
# How many distances are held: 1 GiB, all of a set of up to 16384 rows; on a GPU half of that.
# How many are processed together, as a block: as many as stay in a CPU's cache; on a GPU, which wants few launches, a
# quarter as many as the rows have numbers.
_MAX_HELD, _MAX_BLOCK = 1 << 28, 1 << 22
MAX_HELD_GPU, _MIN_BLOCK_GPU, _MAX_BLOCK_GPU = 1 << 27, 1 << 23, 1 << 26


def dpc_knn(
    points: Float[Tensor, "M D"], num_clusters: int, *, k: int = 7
) -> tuple[Int[Tensor, "num_clusters"], Int[Tensor, "M"]]:
    """Pick cluster centres that are locally dense and far from anything denser.

    Distances are Euclidean, in float32. Ties break towards the lower row.

    Returns:
        The rows of `points` that are centres, best first; and for every row the number of its nearest centre, which for
        a centre is its own.
    Raises:
        ValueError: `num_clusters` is outside 1..M, or `k` is below 1.
    Source: density peaks with k nearest neighbours, section 4.2, eq. 4 of arXiv:2604.09547.
    Deviation: the release adds 1e-6 random noise to the density.
    Example:
        >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]])
        >>> dpc_knn(points, 2, k=2)
        (tensor([1, 4]), tensor([0, 0, 0, 1, 1, 1]))
    """
    (centres,), (nearest,) = density_peaks(points[None], num_clusters, k=k)
    which = torch.empty_like(nearest).scatter_(0, centres, torch.arange(num_clusters, device=points.device))
    return centres, which[nearest]


def density_peaks(
    x: Float[Tensor, "B M D"], num_clusters: int, *, k: int = 7
) -> tuple[Int[Tensor, "B C"], Int[Tensor, "B M"]]:
    """Cluster B sets of rows as `dpc_knn` clusters one; no set influences another.

    Returns:
        The centres of each set, highest score first; and for every row the row of its nearest centre, which for a
        centre is itself.
    Raises:
        ValueError: `num_clusters` is outside 1..M, or `k` is below 1.
    Source: eq. 4 of arXiv:2604.09547. The densest row comes first whatever its delta, so its delta is not computed.
    """
    M = x.shape[1]
    if not 1 <= num_clusters <= M:
        raise ValueError(f"num_clusters must lie in 1..{M} (the number of rows), got {num_clusters}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x = x.float()
    norms = torch.linalg.vector_norm(x, dim=-1)
    length = norms.amax(-1, keepdim=True).clamp_min(2.0**-60).log2().round().exp2()  # (B, 1)
    scale = 1 / (length * TICK_LENGTH)  # a power of two, so that nothing is rounded
    ticks = Ticks(x * scale[:, :, None], (norms * scale).square())
    distance_sum = ticks.sums_of_nearest(k)
    order = distance_sum.sort(dim=-1, stable=True).indices  # densest first
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(M, device=x.device).expand_as(order))
    density = (distance_sum / (-max(1, min(k, M - 1)) * scale.square())).exp_()
    score = density.mul_(ticks.to_denser(rank).clamp_min_(0).sqrt_())
    score.scatter_(1, order[:, :1], torch.inf)  # eq. 4's second case: nothing is denser
    centres = score.sort(dim=-1, descending=True, stable=True).indices[:, :num_clusters]
    ordered = centres.sort(dim=-1).values
    nearest = ordered.gather(1, ticks.which_is_nearest(ordered))
    return centres, nearest.scatter_(1, ordered, ordered)


class Ticks:
    """Squared distances between the rows of every set, in whole numbers.

    A distance matrix that fits into memory is computed once and held. Otherwise every pass computes it anew, block by
    block: one half of it, since it is symmetric.

    Args:
        x: rows in units in which 1 is a tick.
        squares: their squared lengths; infinite for padding, which is infinitely far from everything.
        is_short: some sets have padding, and fewer rows of their own than neighbours are asked for.
    """

    def __init__(self, x: Float[Tensor, "B M D"], squares: Float[Tensor, "B M"], *, is_short: bool = False):
        B, M, _ = x.shape
        self._size, self._squares, self._is_short = (B, M), squares, is_short
        on_cpu = x.device.type == "cpu"
        self._max_block = _MAX_BLOCK if on_cpu else min(max(_MIN_BLOCK_GPU, x.numel() // 4), _MAX_BLOCK_GPU)
        most = _MAX_HELD if on_cpu else MAX_HELD_GPU
        self._held = _count(gram(x), squares, squares) if most >= B * M * M else None
        self._x = x if self._held is None else x.new_empty(0)  # large, and not needed beside its distances

    def sums_of_nearest(self, k: int) -> Float[Tensor, "B M"]:
        """For every row, the sum of the distances to its k nearest rows, or to all others if there are fewer."""
        B, M = self._size
        count = min(k + 1, M)  # one more: the row itself
        if self._held is not None:
            nearest = _joined([_smallest(block, count) for _, _, block in self._blocks()])
        else:
            nearest = torch.full((B, M, count), torch.inf, device=self._squares.device)
            for rows, _, block in self._blocks():
                found = _smallest(block, min(count, block.shape[-1]))
                nearest[:, rows] = _smallest(torch.cat([nearest[:, rows], found], dim=-1), count)
        if self._is_short:
            nearest.nan_to_num_(nan=torch.nan, posinf=0)
        return nearest.sum(-1)

    def to_denser(self, rank: Int[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        """For every row, the distance to the nearest row of lower rank; infinite where there is none."""

        def least(rows: slice, columns: slice, block: Tensor) -> Tensor:
            return block.masked_fill(rank[:, None, columns] >= rank[:, rows, None], torch.inf).amin(-1)

        if self._held is not None:
            return _joined([least(*part) for part in self._blocks()])
        delta = torch.full(rank.shape, torch.inf, device=rank.device)
        for rows, columns, block in self._blocks():
            torch.minimum(delta[:, rows], least(rows, columns, block), out=delta[:, rows])
        return delta

    def which_is_nearest(self, ordered: Int[Tensor, "B C"]) -> Int[Tensor, "B M"]:
        """For every row, which of the listed rows of its set is nearest; ties go to the first, repeats are allowed."""
        B, C = ordered.shape
        if self._held is None:
            x, squares = self._x.take_along_dim(ordered[:, :, None], dim=1), self._squares.gather(1, ordered)
        found = []
        for rows in self._parts(self._max_block // (B * C)):
            if self._held is not None:
                block = self._held[:, rows]
                distances = block.gather(2, ordered[:, None, :].expand(-1, block.shape[1], -1))
            else:
                distances = _count(products(self._x[:, rows], x), self._squares[:, rows], squares)
            found.append(distances.argmin(-1))
        return _joined(found)

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield rows, columns and the distances between them, in the same blocks in every pass.

        Held distances come in order, whole rows at a time.
        """
        B, M = self._size
        if self._held is not None:
            for rows in self._parts(self._max_block // (B * M)):
                yield rows, slice(0, M), self._held[:, rows]
            return
        parts = self._parts(math.isqrt(self._max_block // B))
        for i, rows in enumerate(parts):
            x, squares = self._x[:, rows], self._squares[:, rows]
            yield rows, rows, _count(gram(x), squares, squares)
            for columns in parts[i + 1 :]:
                block = _count(products(x, self._x[:, columns]), squares, self._squares[:, columns])
                yield rows, columns, block
                yield columns, rows, block.mT.contiguous()

    def _parts(self, num_rows: int) -> list[slice]:
        """Cut the rows of a set into slices of at most `num_rows`."""
        M, step = self._size[1], max(1, num_rows)
        return [slice(start, min(start + step, M)) for start in range(0, M, step)]


def _count(
    dots: Float[Tensor, "B row col"], squares: Float[Tensor, "B row"], of_columns: Float[Tensor, "B col"]
) -> Float[Tensor, "B row col"]:
    """Turn dot products into squared distances in whole ticks, in place."""
    block = torch.add(squares[:, :, None], dots, alpha=-2, out=dots)
    return block.add_(of_columns[:, None, :]).round_()


def _joined(parts: list[Tensor]) -> Tensor:
    """Join parts along the rows of a set."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _smallest(x: Float[Tensor, "B row col"], count: int) -> Float[Tensor, "B row count"]:
    return x.topk(count, dim=-1, largest=False, sorted=False).values


def density_peaks_counting_self(
    x: Float[Tensor, "B M D"], num_clusters: int, *, k: int
) -> tuple[Int[Tensor, "B C"], Int[Tensor, "B M"]]:
    """`density_peaks` of other releases: a row is one of its own k neighbours, and distances are divided by sqrt(D).

    In a set of fewer than k rows, all are neighbours. With k = 1 all densities are equal, and the lower row counts as
    denser.

    Source: releases of HoliTom (arXiv:2505.21334) and FastVID (arXiv:2503.11187).
    Deviation: they add 1e-6 random noise to the density.
    """
    k = min(k, x.shape[1])
    if k == 1 and num_clusters == 1:
        first = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        return first[:, :1], first
    if k < 2:
        raise ValueError(f"k must be at least 2 to pick {num_clusters} clusters, got {k}")
    # A row's distance to itself, 0, adds nothing to the sum over neighbours but counts in their mean: k, not k - 1.
    return density_peaks(x.float() * ((k - 1) / (k * x.shape[-1])) ** 0.5, num_clusters, k=k - 1)
