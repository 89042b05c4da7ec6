"""Averaging clusters of tokens into their anchors in one kernel, without atomic additions or a float32 copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tango.annotations import Float, Int

SHAPE = {"MEMBERS": 8, "CHANNELS": 256}  # a program reads a tile of this shape at once


def merge_over_frames(
    x: Float[Tensor, "M D"],
    cluster: Int[Tensor, "M"],
    anchors: Int[Tensor, "C"],
    spans: Int[Tensor, "C"],
    *,
    weight: float,
    stride: int,
) -> Float[Tensor, "C D"]:
    """Blend every anchor, or its mean over several frames, with the mean of its cluster: w * anchor + (1 - w) * mean.

    Sums are in float32 and reproducible. w is the larger of `weight` and span / (cluster size); with `weight = 0` the
    result is the plain mean. Every cluster must contain its anchor in all frames of the span; with spans of 1, the
    result is that of `tango.ops.merging.merge_into_anchors`. The kernel needs a GPU and has no gradient.

    Args:
        cluster: cluster of each row, in 0..C; C itself means none.
        anchors: row of each cluster's anchor in its first frame.
        spans: number of frames, `stride` rows apart, that each anchor is averaged over.
    Raises:
        ValueError: gradients are recorded for `x`.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("this kernel has no gradient; merge with tango.ops.merging where one is needed")
    C, D = len(anchors), x.shape[1]
    merged = x.new_empty(C, D)
    if C == 0:
        return merged
    x, members = x.contiguous(), cluster.sort(stable=True)
    bounds = torch.searchsorted(members.values, torch.arange(C + 1, device=x.device))
    with torch.cuda.device_of(x):
        average[C, triton.cdiv(D, SHAPE["CHANNELS"])](
            x, members.indices, bounds, anchors, spans, merged, D, float(weight), stride, **SHAPE,
            enable_fp_fusion=True,
        )  # fmt: skip
    return merged


@triton.jit
def average(
    x, members, bounds, anchors, spans, merged, width, weight, stride, MEMBERS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Blend some channels of the anchor and the mean of one cluster."""
    cluster = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(bounds + cluster), tl.load(bounds + cluster + 1)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < width
    total = tl.full((CHANNELS,), 0.0, tl.float32)
    for first in range(begin, end, MEMBERS):
        index = first + tl.arange(0, MEMBERS)
        row = tl.load(members + index, mask=index < end, other=0)[:, None]
        values = tl.load(x + row * width + channel[None, :], mask=(index < end)[:, None] & exists[None, :], other=0.0)
        total += tl.sum(values.to(tl.float32), 0)
    size = (end - begin).to(tl.float32)
    merged_row = _divide(total, size, CHANNELS)
    if weight > 0:
        span = tl.load(spans + cluster)
        source = x + tl.load(anchors + cluster) * width + channel
        anchor = tl.full((CHANNELS,), 0.0, tl.float32)
        for _ in range(0, span):
            anchor += tl.load(source, mask=exists, other=0.0).to(tl.float32)
            source += stride * width
        anchor = _divide(anchor, span.to(tl.float32), CHANNELS)
        w = tl.maximum(tl.div_rn(span.to(tl.float32), size), weight)
        # Interpolate from the nearer side, so that weights of 0 and 1 are exact.
        near_mean, near_anchor = merged_row + w * (anchor - merged_row), anchor - (anchor - merged_row) * (1 - w)
        merged_row = tl.where(w < 0.5, near_mean, near_anchor)
    tl.store(merged + cluster * width + channel, merged_row.to(merged.dtype.element_ty), mask=exists)


@triton.jit
def _divide(values, divisor, CHANNELS: tl.constexpr):
    """Divide with correct rounding, so that the mean of one value is this value."""
    return tl.div_rn(values, tl.full((CHANNELS,), 0.0, tl.float32) + divisor)
