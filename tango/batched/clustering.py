"""Density-peaks clustering of many sets of different sizes: a few operators, whatever the number of sets.

Sets of similar size are padded to the largest of them. Such a bucket needs one product of matrices and one operator for
each of the three uses of its distances. In between, the rows of all sets are ranked at once.
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

_MAX_BATCH_CPU = 1 << 24  # distances of the sets that a CPU clusters together; more would only cost memory
_GPU_BUCKETS = 3
_BUCKET_COST = 1 << 20  # distances that a GPU computes while the operators of one more bucket are launched
_SET_KEY = 1 << 40  # between sets; exceeds any sum of ticks, 2**20 each at most, and any score's bits, up or down

Ints: TypeAlias = NDArray[np.int64]
Gather = Callable[[Tensor], Tensor]


def density_peaks_of_sets(
    gather: Gather, sizes: Ints, num_clusters: Ints, *, k: int, device: torch.device
) -> tuple[Int[Tensor, "C"], Int[Tensor, "R"]]:
    """`tango.ops.clustering.density_peaks` of sets of `sizes[i]` rows, each with its own number of clusters.

    Args:
        gather: returns the rows with the given n numbers, (n, D), of length 2**9 (or 0), so that 1 is a tick. The sets
            are runs of numbers from 0 on.
    Returns:
        The numbers of every set's centres, highest score first, set after set; and for every row the number of its
        nearest centre, which for a centre is itself.
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
    """Sets that are padded to one size; the slices are of a plan's rows and slots."""

    rows: slice
    slots: slice
    num_sets: int
    is_short: bool  # a set has padding, and fewer rows than neighbours are asked for


class _Plan(NamedTuple):
    """The rows of some buckets, one after another, padding included; sets are in the order of the buckets."""

    buckets: list[_Bucket]
    numbers: Ints  # number of each row, as the caller counts; of padding one more than the last
    sources: Ints  # number of the row to gather; for padding the first row of its set
    set_keys: Ints  # added to what rows are ranked by, so that sets stay apart; padding comes last
    exponents: Ints  # of each row: a sum of ticks divided by this is the logarithm of a density
    slots: Ints  # of each set's centres, their ranks among all centres in row order; padding repeats the first
    first_rows: Ints  # first row of each slot's set
    ranks: Ints  # of the centres, among all rows ordered by set and score
    targets: Ints  # positions of the centres in the result
    padding: Ints  # rows that are padding


def _plan(buckets: list[Ints], sizes: Ints, num_clusters: Ints, k: int) -> _Plan:
    starts, targets = sizes.cumsum() - sizes, num_clusters.cumsum() - num_clusters
    order = np.concatenate(buckets)
    own_starts, own_slots = (values[order].cumsum() - values[order] for values in (sizes, num_clusters))
    planned, columns, row, slot, first = [], [], 0, 0, 0
    for sets in buckets:
        B, M, C = len(sets), int(sizes[sets].max()), int(num_clusters[sets].max())
        count, chosen = sizes[sets][:, None], num_clusters[sets][:, None]
        exists, slot_of_set = np.arange(M) < count, np.arange(C)
        planned.append(
            _Bucket(slice(row, row + B * M), slice(slot, slot + B * C), B, bool(((count <= k) & (count < M)).any()))
        )
        columns.append(
            (
                np.where(exists, starts[sets][:, None] + np.arange(M), sizes.sum()),
                starts[sets][:, None] + np.where(exists, np.arange(M), 0),
                np.where(exists, _SET_KEY * np.arange(first, first + B)[:, None], _SET_KEY * len(order)),
                np.broadcast_to(np.clip(count - 1, 1, k) * -int(TICK_LENGTH**-2), (B, M)),
                own_slots[first : first + B, None] + np.where(slot_of_set < chosen, slot_of_set, 0),
                np.broadcast_to(row + M * np.arange(B)[:, None], (B, C)),
            )
        )
        row, slot, first = row + B * M, slot + B * C, first + B
    numbers, sources, keys, exponents, listed, first_rows = (
        np.concatenate([part.ravel() for part in parts]) for parts in zip(*columns, strict=True)
    )
    ranks, written = runs(own_starts, num_clusters[order]), runs(targets[order], num_clusters[order])
    padding = np.flatnonzero(numbers == sizes.sum())
    return _Plan(planned, numbers, sources, keys, exponents, listed, first_rows, ranks, written, padding)


def _cluster(plan: _Plan, gather: Gather, k: int, centres: Int[Tensor, "C"], nearest: Int[Tensor, "R+1"]) -> None:
    """Cluster the sets of a plan, and write the results to where they belong."""
    numbers, sources, set_keys, exponents, slots, first_rows, ranks, targets, padding = to_device_together(
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
    del rows  # where all distances are held, nothing else needs them
    distance_sum = of_each(lambda own, _: own.sums_of_nearest(k))
    order = (set_keys + distance_sum.long()).sort(stable=True).indices  # set by set, densest first
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    delta = of_each(lambda own, bucket: own.to_denser(of(bucket, rank))).clamp_min_(0)
    score = (distance_sum / exponents).exp_().mul_(delta.sqrt_())  # infinite where nothing is denser
    # Floats that are not negative, nor -0, are in the order of their bits.
    best = (set_keys - score.abs_().view(torch.int32)).sort(stable=True).indices.index_select(0, ranks)
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
    """For all i, `counts[i]` whole numbers from `starts[i]` on."""
    return np.arange(counts.sum()) + np.repeat(starts - (counts.cumsum() - counts), counts)


def _turns(sizes: Ints, device: torch.device) -> Iterator[list[Ints]]:
    """Group the buckets that are worked on together: as many as have room in memory for their distances."""
    most = _MAX_BATCH_CPU if device.type == "cpu" else MAX_HELD_GPU
    return in_turns(((sets, len(sets) * int(sizes[sets].max()) ** 2) for sets in _buckets(sizes, device)), most)


def _buckets(sizes: Ints, device: torch.device) -> Iterator[Ints]:
    """Divide the sets into buckets; those of a bucket are padded to one size.

    On a CPU a bucket has sets of one size, since padding costs work. A GPU wants few launches: it gets at most
    `_GPU_BUCKETS`, cut for the least work with padding, and more only where the distances of one exceed the memory.
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
    """Round sizes up to one of a few per doubling, so that many sets do not mean many sizes."""
    step = 2 ** np.maximum(np.log2(sizes).astype(np.int64) - 2, 0)
    return -(-sizes // step) * step


def _least_work(levels: Ints, counts: Ints) -> list[int]:
    """Cut increasing sizes, of `counts[i]` sets each, for the least work if every set is padded to the next cut."""
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
