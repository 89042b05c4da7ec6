"""Reducing groups of tokens: keep salient, mutually different ones, merge the others into cluster centres."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tango.ops.blocks import upload_together
from tango.ops.groups import Batch
from tango.ops.selection import diverse_top_k, runs
from tango.ops.varlen import density_peaks_varlen
from tango.shapes import Float, Int


class Kept(NamedTuple):
    """Which rows are kept, and what becomes of the others, by their numbers among the rows of all batches."""

    rows: Int[Tensor, "K"]
    anchors: Int[Tensor, "K"]  # the row that each kept one has its content from
    absorbed_by: Int[Tensor, "R"]  # the kept row that stands for each row; -1: none


@torch.no_grad()
def reduce_rows(
    batch: Batch,
    saliency: Float[Tensor, "R"],
    gather: Callable[[Tensor], Tensor],
    *,
    alpha: float,
    num_neighbors: int,
    by_density: bool,
) -> Kept:
    """Select salient rows in every run of a batch, and cluster the others in every set.

    Args:
        gather: returns what is compared to tell n rows apart, (n, D).
        alpha, num_neighbors: see `diverse_top_k`.
        by_density: exchange the places of a set's merged rows by the density of their anchors (Tango's release).
    Source: sections 4.2 and 4.3 of arXiv:2604.09547.
    """
    device, first = saliency.device, batch.rows.start
    salient = diverse_top_k(
        saliency,
        batch.frame_sizes,
        batch.num_salient,
        lambda rows: gather(rows + first),
        alpha=alpha,
        num_neighbors=num_neighbors,
    )
    free = torch.ones(len(saliency), dtype=torch.uint8, device=device).index_fill_(0, salient, 0)
    others = free.sort(descending=True, stable=True).indices + first  # in order; the salient ones come last
    sizes, counts = batch.set_sizes, batch.num_context
    starts, whole = sizes.cumsum() - sizes, counts == sizes
    open_ = (counts > 0) & ~whole
    own, rest = (
        others[places]
        for places in upload_together(
            runs(starts[whole], sizes[whole]), runs(starts[open_], sizes[open_]), device=device
        )
    )
    rows = anchors = torch.cat([salient + first, own])
    absorbed_by = torch.full_like(free, -1, dtype=torch.long).index_copy_(0, rows - first, rows)
    if open_.any():
        centres, nearest = density_peaks_varlen(
            gather(rest), sizes[open_].tolist(), counts[open_].tolist(), k=num_neighbors
        )
        in_order = centres.sort().values
        landing = rest[centres if by_density else in_order]
        landing_of = torch.empty_like(rest).index_copy_(0, in_order, landing)
        absorbed_by.index_copy_(0, rest - first, landing_of[nearest])
        rows, anchors = torch.cat([rows, landing]), torch.cat([anchors, rest[in_order]])
    return Kept(rows, anchors, absorbed_by)


def clusters_of_tokens(kept: Int[Tensor, "K"], absorbed_by: Int[Tensor, "R"]) -> Int[Tensor, "R+1"]:
    """For every row the place in `kept` of the row that stands for it, and for no row at all: K if none does."""
    none = len(kept)
    place = torch.full((len(absorbed_by) + 1,), none, device=kept.device)
    place[kept] = torch.arange(none, device=kept.device)
    return torch.cat([place[absorbed_by], place[-1:]])  # -1 is the last place
