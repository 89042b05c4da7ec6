"""Density-peaks clustering of many sets of different sizes: a few batches, whatever the number of sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.kernels import kernels_run_on
from tango.ops.blocks import upload_together
from tango.ops.clustering import density_peaks, max_elements
from tango.shapes import Float, Int

_GPU_BUCKETS = 3
_BUCKET_COST = 1 << 21  # distances that a GPU computes while a bucket's operators are launched


def density_peaks_varlen(
    rows: Float[Tensor, "R D"], sizes: Sequence[int], num_clusters: Sequence[int], *, k: int
) -> tuple[Int[Tensor, "C"], Int[Tensor, "R"]]:
    """`density_peaks` of sets that are runs of `sizes[i]` rows, each with its own number of clusters.

    Returns:
        The centres of every set as ids of `rows`, highest score first, set after set; and for every row the id of its
        nearest centre (a centre's own is itself).
    Raises:
        ValueError: a set is asked for no cluster or for more than it has rows, or `k` is below 1.
    """
    if not len(sizes):
        return (torch.empty(0, dtype=torch.long, device=rows.device),) * 2
    if kernels_run_on(rows):
        from tango.kernels import density

        if k <= density.MAX_NEIGHBORS:
            return density.density_peaks_varlen(rows.float(), sizes, num_clusters, k=k)
    return _in_buckets(rows, np.asarray(sizes), np.asarray(num_clusters), k)


def _in_buckets(
    rows: Tensor, sizes: NDArray[np.int64], num_clusters: NDArray[np.int64], k: int
) -> tuple[Tensor, Tensor]:
    """Pad sets of similar size to the largest of them, and cluster each such bucket as one batch."""
    if (bad := (num_clusters < 1) | (num_clusters > sizes)).any():
        i = int(bad.argmax())
        raise ValueError(f"num_clusters must lie in 1..{sizes[i]} (the number of rows), got {num_clusters[i]}")
    R, C, device = len(rows), int(num_clusters.sum()), rows.device
    starts, slots = sizes.cumsum() - sizes, num_clusters.cumsum() - num_clusters
    found = list(_buckets(sizes, device))
    plans = upload_together(
        *(
            plan
            for sets in found
            for plan in (_padded(starts[sets], sizes[sets], R), _padded(slots[sets], num_clusters[sets], C))
        ),
        *(counts[sets] for counts in (sizes, num_clusters) for sets in found),
        device=device,
    )
    n = len(found)
    centres = torch.empty(C + 1, dtype=torch.long, device=device)  # padding is written to the last place
    nearest = torch.empty(R + 1, dtype=torch.long, device=device)
    for i, sets in enumerate(found):
        ids, slot, num_rows, clusters = plans[2 * i], plans[2 * i + 1], plans[2 * n + i], plans[3 * n + i]
        even = bool((sizes[sets] == sizes[sets[0]]).all())
        whole = slice(int(starts[sets[0]]), int(starts[sets[-1]] + sizes[sets[-1]]))
        if even and whole.stop - whole.start == ids.numel():
            chosen = rows[whole]
        else:
            chosen = rows.index_select(0, ids.clamp_max(R - 1).flatten())
        peaks, closest = density_peaks(
            chosen.view(*ids.shape, -1),
            slot.shape[1],
            k=k,
            num_rows=None if even else num_rows,
            clusters=None if (num_clusters[sets] == slot.shape[1]).all() else clusters,
        )
        centres[slot] = ids.gather(1, peaks)
        nearest[ids] = ids.gather(1, closest)
    return centres[:C], nearest[:R]


def _padded(starts: NDArray[np.int64], counts: NDArray[np.int64], filler: int) -> NDArray[np.int64]:
    """A row for every run, `starts[i]`, `starts[i] + 1`, ... up to its count, and `filler` beyond."""
    place = np.arange(counts.max())
    return np.where(place < counts[:, None], starts[:, None] + place, filler)


def _buckets(sizes: NDArray[np.int64], device: torch.device) -> Iterator[NDArray[np.int64]]:
    """Divide sets into such as are clustered together.

    On a CPU these are sets of one size, since padding costs work. A GPU wants few launches: it gets `_GPU_BUCKETS` at
    most, chosen for the least padded work, and more only where the distances of one would not fit into memory.
    """
    levels = sizes if device.type == "cpu" else _rounded_up(sizes)
    levels, level_of, counts = np.unique(levels, return_inverse=True, return_counts=True)
    edges = range(len(levels) + 1) if device.type == "cpu" else _least_work(levels, counts)
    for low, high in pairwise(edges):
        sets = np.flatnonzero((low <= level_of) & (level_of < high))
        turn = max(1, max_elements(device) // int(sizes[sets].max()) ** 2)
        for start in range(0, len(sets), turn):
            yield sets[start : start + turn]


def _rounded_up(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes rounded to one of a few per doubling, so that their number does not grow with that of the sets."""
    step = 2 ** np.maximum(np.log2(sizes).astype(np.int64) - 2, 0)
    return -(-sizes // step) * step


def _least_work(levels: NDArray[np.int64], counts: NDArray[np.int64]) -> list[int]:
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
