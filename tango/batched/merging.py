"""Averaging clusters of tokens into their anchors, where tokens may be means over several frames."""

from __future__ import annotations

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.batched.kernels import kernels_run_on
from tango.ops.device import chunks
from tango.ops.merging import means_and_sizes


def merge_over_frames(
    x: Float[Tensor, "M D"],
    cluster: Int[Tensor, "M"],
    anchors: Int[Tensor, "C"],
    spans: Int[Tensor, "C"],
    *,
    weight: float,
    stride: int,
    num_averaged: int,
    kernels: bool = True,
) -> Float[Tensor, "C D"]:
    """`merge_into_anchors` where an anchor, and each member of its cluster, may be a mean over several frames.

    Args:
        cluster: cluster of each row, in all frames.
        anchors: row of each cluster's anchor in its first frame.
        spans: number of frames, `stride` rows apart, that each anchor is averaged over.
        num_averaged: the sum of `spans`.
    """
    if kernels and kernels_run_on(x) and not (torch.is_grad_enabled() and x.requires_grad):
        from tango.batched.kernels import merging

        return merging.merge_over_frames(x, cluster, anchors, spans, weight=weight, stride=stride)
    mean, counts = means_and_sizes(x, cluster, len(anchors))
    if weight == 0:
        return mean.to(x.dtype)
    w = (spans[:, None] / counts).clamp_min(weight)
    merged = mean.mul_(1 - w)
    slot = torch.repeat_interleave(spans, output_size=num_averaged)
    frame = torch.arange(num_averaged, device=x.device) - (spans.cumsum(0) - spans)[slot]
    rows, share = anchors[slot] + frame * stride, (w[:, 0] / spans)[slot, None]
    for chunk in chunks(num_averaged, x.shape[1] * 4, x.device):
        parts = x.index_select(0, rows[chunk]) * share[chunk]
        merged = merged.index_add_(0, slot[chunk], parts.float())
    return merged.to(x.dtype)
