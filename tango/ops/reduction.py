"""Reducing one group of tokens: keep salient, mutually different ones, merge the others into cluster centres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tango.ops.blocks import upload
from tango.ops.clustering import density_peaks
from tango.ops.groups import Group
from tango.ops.merging import merge_into_anchors
from tango.ops.selection import diverse_top_k
from tango.shapes import Bool, Float, Int


class Kept(NamedTuple):
    """What is kept of a group, and which kept token stands for each of its tokens (-1: none). Flat token indices."""

    indices: Int[Tensor, "K"]
    features: Float[Tensor, "K D"]
    absorbed_by: Int[Tensor, "B n"]


def reduce_group(
    group: Group,
    x: Float[Tensor, "B N D"],
    places: Int[Tensor, "n"],
    metric: Float[Tensor, "B n D"],
    saliency: Float[Tensor, "B n"],
    *,
    alpha: float,
    num_neighbors: int,
    merge_weight: float,
    by_density: bool,
) -> Kept:
    """Select and merge within one group.

    Args:
        x: tokens of the group's frames; of static tokens their mean, as one frame.
        places: the group's places in a frame.
        metric: what is compared to tell tokens apart, unit rows; `saliency` likewise for the group's places alone.
        alpha, num_neighbors: see `diverse_top_k`; merge_weight: see `merge_into_anchors`.
        by_density: store merged rows at the anchors in order of their density, which misplaces them (Tango's release).
    Source: sections 4.2 and 4.3 of arXiv:2604.09547.
    """
    (B, n, D), N, device = metric.shape, x.shape[1], x.device
    x = x.reshape(B * N, D)
    local = _number(places.expand(B, n), N)  # token ids that count through the group's frames, N to a frame
    set_size = B * n if group.joint else n  # tokens that are clustered together
    with torch.no_grad():
        salient = diverse_top_k(saliency, metric, group.num_salient, alpha=alpha, num_neighbors=num_neighbors)
        free = torch.ones(B, n, dtype=torch.bool, device=device).scatter_(1, salient, False)
        centres, nearest = _cluster(group, metric, free, num_neighbors)
        salient = local[_number(salient, n)]
        anchors = local[_number(centres.sort(dim=-1).values, set_size)]
        landing = local[_number(centres, set_size)] if by_density else anchors
        none = len(anchors)
        slot = torch.full((B * N,), none, device=device)
        slot[anchors] = torch.arange(none, device=device)
        cluster = torch.full_like(slot, none)
        cluster[local] = torch.where(free.flatten(), slot[local[_number(nearest, set_size)]], none)
        absorbed_by = torch.cat([landing, landing.new_full((1,), -1)])[cluster].index_copy(0, salient, salient)
        frame_start = upload(group.frames, device)[:, None] * N
        in_video = (frame_start + torch.arange(N, device=device)).flatten()  # flat index of each local token
        absorbed_by = torch.where(absorbed_by >= 0, in_video[absorbed_by], -1)[local].view(B, n)
    merged = merge_into_anchors(x, cluster, anchors, weight=merge_weight)
    features = torch.cat([x.index_select(0, salient), merged])
    return Kept(in_video[torch.cat([salient, landing])], features, absorbed_by)


def _cluster(
    group: Group, metric: Float[Tensor, "B n D"], free: Bool[Tensor, "B n"], num_neighbors: int
) -> tuple[Tensor, Tensor]:
    """Centres and nearest centres of the tokens that are not salient, in one set or in one per frame."""
    num_free = metric.shape[1] - group.num_salient
    if group.joint:
        num_free *= len(metric)
        metric, free = metric.flatten(0, 1)[None], free.flatten()[None]
    places = (~free).byte().sort(dim=-1, stable=True).indices[:, :num_free]  # in order
    itself = torch.arange(free.shape[1], device=free.device).expand_as(free)
    if not 0 < group.num_context < num_free:
        return places[:, : group.num_context], itself
    rows = metric.flatten(0, 1).index_select(0, _number(places, free.shape[1])).view(*places.shape, -1)
    centres, nearest = density_peaks(rows, group.num_context, k=num_neighbors)
    return places.gather(1, centres), itself.scatter(1, places, places.gather(1, nearest))


def _number(ids: Tensor, size: int) -> Tensor:
    """Number the ids of several sets of `size` consecutively."""
    return (ids + torch.arange(len(ids), device=ids.device)[:, None] * size).flatten()
