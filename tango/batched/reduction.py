"""Reducing groups of tokens: salient, mutually different ones are kept, the others merged into cluster centres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from tango.annotations import Float, Int
from tango.batched.clustering import Gather, density_peaks_of_sets, runs
from tango.batched.layout import Batch
from tango.batched.selection import diverse_top_k
from tango.ops.device import to_device_together


class Kept(NamedTuple):
    """Which rows of a batch are kept, and which of these stands for every row."""

    rows: Int[Tensor, "K"]
    anchors: Int[Tensor, "K"]  # the row whose content each kept row has
    assignment: Int[Tensor, "R"]  # the kept row that stands for each row; -1: none


@torch.no_grad()
def reduce_rows(
    batch: Batch,
    saliency: Float[Tensor, "R"],
    gather: Gather,
    *,
    alpha: float,
    num_neighbors: int,
    by_density: bool,
) -> Kept:
    """Select salient rows in every run of a batch, and cluster the others in every set.

    Args:
        gather: returns the points by which n rows are compared, see `density_peaks_of_sets`.
        alpha, num_neighbors: see `diverse_top_k`.
        by_density: exchange the positions of a set's merged rows by the density of their anchors (Tango's release).
    Source: sections 4.2 and 4.3 of arXiv:2604.09547.
    """
    device, sizes, counts = saliency.device, batch.set_sizes, batch.num_context
    with record_function("tango::selection"):
        salient = diverse_top_k(
            saliency, batch.frame_sizes, batch.num_salient, gather, alpha=alpha, num_neighbors=num_neighbors
        )
    free = torch.ones(len(saliency), dtype=torch.uint8, device=device).index_fill_(0, salient, 0)
    others = free.sort(descending=True, stable=True).indices  # in order; the salient ones come last
    starts, whole = sizes.cumsum() - sizes, counts == sizes
    open_ = (counts > 0) & ~whole
    own, open_rows = to_device_together(
        runs(starts[whole], sizes[whole]), runs(starts[open_], sizes[open_]), device=device
    )
    rows = torch.cat([salient, others[own]]) if len(own) else salient
    assignment = torch.full_like(free, -1, dtype=torch.long).index_copy_(0, rows, rows)
    if not open_.any():
        return Kept(rows, rows, assignment)
    rest = others[open_rows]
    with record_function("tango::clustering"):
        centres, nearest = density_peaks_of_sets(
            lambda ids: gather(rest[ids]), sizes[open_], counts[open_], k=num_neighbors, device=device
        )
    anchors = rest[centres]
    if not by_density:
        kept = torch.cat([rows, anchors])
        return Kept(kept, kept, assignment.index_copy_(0, rest, rest[nearest]))
    in_order = centres.sort().values
    landing_of = torch.empty_like(rest).index_copy_(0, in_order, anchors)
    assignment.index_copy_(0, rest, landing_of[nearest])
    return Kept(torch.cat([rows, anchors]), torch.cat([rows, rest[in_order]]), assignment)


def clusters_of_tokens(kept: Int[Tensor, "K"], assignment: Int[Tensor, "R"]) -> Int[Tensor, "R+1"]:
    """For every row the index in `kept` of the row that stands for it, K if none does; and one more K, for no row."""
    none = len(kept)
    index = torch.full((len(assignment) + 1,), none, device=kept.device)
    index[kept] = torch.arange(none, device=kept.device)
    return torch.cat([index[assignment], index[-1:]])  # -1 reads the last entry, K
