"""Density-peaks clustering of many sets of different sizes: a few operators, whatever the number of sets.

Sets of similar size are padded to the largest of them; such a bucket is one product of matrices, and each of the three
looks at its distances one operator for all its sets. In between rows are ranked, for all sets at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from tango.annotations import Int
from tango.batched.layout import in_turns
from tango.ops.clustering import MAX_HELD_GPU, TICK_LENGTH, Ticks
from tango.ops.device import to_device_together

_MAX_BATCH_CPU = 1 << 24  # distances of the sets that a CPU clusters together; more only cost it memory
_GPU_BUCKETS = 3
_BUCKET_COST = 1 << 20  # distances that a GPU computes while a bucket's operators are launched
_SET_KEY = 1 << 40  # more than any sum of ticks, of 2**20 at most, and than any score's bits, up or down

Ints: TypeAlias = NDArray[np.int64]
Gather = Callable[[Tensor], Tensor]


def density_peaks_of_sets(
    gather: Gather, sizes: Ints, num_clusters: Ints, *, k: int, device: torch.device
) -> tuple[Int[Tensor, "C"], Int[Tensor, "R"]]:
    """`tango.ops.clustering.density_peaks` of sets of `sizes[i]` rows, each with its own number of clusters.

    Args:
        gather: returns the rows with these n numbers, (n, D), of length 2**9 (or 0): 1 is a tick. The sets are runs of
            numbers from 0 on.
    Returns:
        The numbers of every set's centres, highest score first, set after set; and for every row the number of its
        nearest centre (a centre's own is itself).
    Raises:
        ValueError: a set is asked for no cluster or for more than it has rows, or `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if (bad := (num_clusters < 1) | (num_clusters > sizes)).any():
        i = int(bad.argmax())
        raise ValueError(f"num_clusters must lie in 1..{sizes[i]} (the number of rows), got {num_clusters[i]}")
    centres = torch.empty(int(num_clusters.sum()), dtype=torch.long, device=device)
    nearest = torch.empty(int(sizes.sum()) + 1, dtype=torch.long, device=device)  # padding is written to the last
    for buckets in _turns(sizes, device):
        _cluster(_plan(buckets, sizes, num_clusters, k), gather, k, centres, nearest)
    return centres, nearest[:-1]


class _Bucket(NamedTuple):
    """Sets of one size, once padded; the slices are of a plan's rows and slots."""

    rows: slice
    slots: slice
    num_sets: int
    is_short: bool  # a set has fewer rows than neighbours are asked for, and padding


class _Plan(NamedTuple):
    """Rows of some buckets, padding among them, one after another; sets are in the order of the buckets."""

    buckets: list[_Bucket]
    numbers: Ints  # of each row, as the caller counts them; padding: one more than there are
    sources: Ints  # the same; padding: any row of its set
    set_keys: Ints  # of each row, apart by set so far that what rows are ranked by fits between; padding comes last
    exponents: Ints  # what turns a sum of ticks into the logarithm of a density, as a divisor, of each row
    slots: Ints  # where each set's centres are among all in order, the first one repeated for padding
    first_rows: Ints  # of each slot's set
    places: Ints  # of the centres in an order by set and score
    targets: Ints  # of the centres in the result
    padding: Ints  # where it is


def _plan(buckets: list[Ints], sizes: Ints, num_clusters: Ints, k: int) -> _Plan:
    starts, targets = sizes.cumsum() - sizes, num_clusters.cumsum() - num_clusters
    order = np.concatenate(buckets)
    own_starts, own_slots = (values[order].cumsum() - values[order] for values in (sizes, num_clusters))
    planned, columns, row, slot, first = [], [], 0, 0, 0
    for sets in buckets:
        B, M, C = len(sets), int(sizes[sets].max()), int(num_clusters[sets].max())
        count, chosen = sizes[sets][:, None], num_clusters[sets][:, None]
        exists, place = np.arange(M) < count, np.arange(C)
        planned.append(
            _Bucket(slice(row, row + B * M), slice(slot, slot + B * C), B, bool(((count <= k) & (count < M)).any()))
        )
        columns.append(
            (
                np.where(exists, starts[sets][:, None] + np.arange(M), sizes.sum()),
                starts[sets][:, None] + np.where(exists, np.arange(M), 0),
                np.where(exists, _SET_KEY * np.arange(first, first + B)[:, None], _SET_KEY * len(order)),
                np.broadcast_to(np.clip(count - 1, 1, k) * -int(TICK_LENGTH**-2), (B, M)),
                own_slots[first : first + B, None] + np.where(place < chosen, place, 0),
                np.broadcast_to(row + M * np.arange(B)[:, None], (B, C)),
            )
        )
        row, slot, first = row + B * M, slot + B * C, first + B
    numbers, sources, keys, exponents, listed, first_rows = (
        np.concatenate([part.ravel() for part in parts]) for parts in zip(*columns, strict=True)
    )
    places, written = runs(own_starts, num_clusters[order]), runs(targets[order], num_clusters[order])
    padding = np.flatnonzero(numbers == sizes.sum())
    return _Plan(planned, numbers, sources, keys, exponents, listed, first_rows, places, written, padding)


def _cluster(plan: _Plan, gather: Gather, k: int, centres: Int[Tensor, "C"], nearest: Int[Tensor, "R+1"]) -> None:
    """Write the results of a plan's sets to where they belong."""
    numbers, sources, set_keys, exponents, slots, first_rows, places, targets, padding = to_device_together(
        *plan[1:], device=centres.device
    )
    rows = gather(sources)
    squares = torch.linalg.vector_norm(rows, dim=-1).square()
    if len(padding):
        squares.index_fill_(0, padding, torch.inf)

    def of(bucket: _Bucket, values: Tensor) -> Tensor:
        return values[bucket.rows].unflatten(0, (bucket.num_sets, -1))

    def of_each(look: Callable[[Ticks, _Bucket], Tensor]) -> Tensor:
        parts = [look(own, bucket).flatten() for own, bucket in zip(ticks, plan.buckets, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    with record_function("tango::products"):
        ticks = [Ticks(of(b, rows), of(b, squares), is_short=b.is_short) for b in plan.buckets]
    distance_sum = of_each(lambda own, _: own.sums_of_nearest(k))
    order = (set_keys + distance_sum.long()).sort(stable=True).indices  # set by set, densest first
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    delta = of_each(lambda own, bucket: own.to_denser(of(bucket, rank))).clamp_min_(0)
    score = (distance_sum / exponents).exp_().mul_(delta.sqrt_())  # infinite where nothing is denser
    # Numbers are in the order of their bits if none is negative, -0 neither.
    best = (set_keys - score.abs_().view(torch.int32)).sort(stable=True).indices.index_select(0, places)
    in_order = best.sort().values
    listed = in_order.index_select(0, slots)
    of_set = listed - first_rows

    def nearest_centre(own: Ticks, bucket: _Bucket) -> Tensor:
        candidates, rows_of_set = (values[bucket.slots].view(bucket.num_sets, -1) for values in (listed, of_set))
        return candidates.gather(1, own.which_is_nearest(rows_of_set))

    near = of_each(nearest_centre).index_copy_(0, in_order, in_order)
    centres.index_copy_(0, targets, numbers.index_select(0, best))
    nearest.index_copy_(0, numbers, numbers.index_select(0, near))


def runs(starts: Ints, counts: Ints) -> Ints:
    """`counts[i]` whole numbers from `starts[i]` on, for all i."""
    return np.arange(counts.sum()) + np.repeat(starts - (counts.cumsum() - counts), counts)


def _turns(sizes: Ints, device: torch.device) -> Iterator[list[Ints]]:
    """Buckets that are worked on together, as long as their distances fit into memory."""
    most = _MAX_BATCH_CPU if device.type == "cpu" else MAX_HELD_GPU
    return in_turns(((sets, len(sets) * int(sizes[sets].max()) ** 2) for sets in _buckets(sizes, device)), most)


def _buckets(sizes: Ints, device: torch.device) -> Iterator[Ints]:
    """Divide sets into such as are padded to one size.

    On a CPU these are sets of one size, since padding costs work. A GPU wants few launches: it gets `_GPU_BUCKETS` at
    most, chosen for the least padded work, and more only where the distances of one would not fit into memory.
    """
    on_cpu = device.type == "cpu"
    levels, level_of, counts = np.unique(
        sizes if on_cpu else _rounded_up(sizes), return_inverse=True, return_counts=True
    )
    edges = range(len(levels) + 1) if on_cpu else _least_work(levels, counts)
    for low, high in pairwise(edges):
        sets = np.flatnonzero((low <= level_of) & (level_of < high))
        turn = max(1, (_MAX_BATCH_CPU if on_cpu else MAX_HELD_GPU) // int(sizes[sets].max()) ** 2)
        for start in range(0, len(sets), turn):
            yield sets[start : start + turn]


def _rounded_up(sizes: Ints) -> Ints:
    """Sizes rounded to one of a few per doubling, so that their number does not grow with that of the sets."""
    step = 2 ** np.maximum(np.log2(sizes).astype(np.int64) - 2, 0)
    return -(-sizes // step) * step


def _least_work(levels: Ints, counts: Ints) -> list[int]:
    """Where to cut increasing sizes, each that of so many sets, for the least work with sets padded to the next cut."""
    before = np.concatenate([[0], counts.cumsum()])
    ends = levels.astype(np.float64) ** 2

    def extended(best: NDArray[np.float64], end: int) -> NDArray[np.float64]:
        """Work up to `end` levels, the last bucket starting at each of them."""
        return best[:end] + (before[end] - before[:end]) * ends[end - 1] + _BUCKET_COST

    best = np.full(len(levels) + 1, np.inf)
    best[0] = 0.0
    choices = []
    for _ in range(_GPU_BUCKETS):
        options = [extended(best, end) for end in range(1, len(best))]
        choices.append([0, *(int(option.argmin()) for option in options)])
        best = np.array([0.0, *(option.min() for option in options)])
    edges = [len(levels)]
    for choice in reversed(choices):
        edges.append(choice[edges[-1]])
    return sorted(set(edges))
