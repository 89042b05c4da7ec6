"""Averaging clusters of tokens into their anchors by one kernel, without atomic additions or a float32 copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tango.shapes import Float, Int

SHAPE = {"MEMBERS": 8, "CHANNELS": 256}  # of the block that a program reads at once


def merge_into_anchors(
    x: Float[Tensor, "M D"], cluster: Int[Tensor, "M"], anchors: Int[Tensor, "C"], *, weight: float
) -> Float[Tensor, "C D"]:
    """`tango.ops.merging.merge_into_anchors` with the same sums every time, but no gradient; needs a GPU.

    Raises:
        ValueError: gradients are recorded for `x`.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise ValueError("this kernel has no gradient; use tango.ops.merging.merge_into_anchors")
    C, D = len(anchors), x.shape[1]
    merged = x.new_empty(C, D)
    if C == 0:
        return merged
    x, members = x.contiguous(), cluster.sort(stable=True)
    bounds = torch.searchsorted(members.values, torch.arange(C + 1, device=x.device))
    grid = C, triton.cdiv(D, SHAPE["CHANNELS"])
    with torch.cuda.device_of(x):
        average[grid](x, members.indices, bounds, anchors, merged, D, float(weight), **SHAPE, enable_fp_fusion=True)
    return merged


@triton.jit
def average(
    x, members, bounds, anchors, merged, width, weight, MEMBERS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Blend the anchor of one cluster with its mean, some channels of them."""
    cluster = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(bounds + cluster), tl.load(bounds + cluster + 1)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < width
    total = tl.full((CHANNELS,), 0.0, tl.float32)
    for first in range(begin, end, MEMBERS):
        place = first + tl.arange(0, MEMBERS)
        row = tl.load(members + place, mask=place < end, other=0)[:, None]
        values = tl.load(x + row * width + channel[None, :], mask=(place < end)[:, None] & exists[None, :], other=0.0)
        total += tl.sum(values.to(tl.float32), 0)
    size = (end - begin).to(tl.float32)
    mean = tl.div_rn(total, tl.full((CHANNELS,), 0.0, tl.float32) + size)
    if weight > 0:
        anchor = tl.load(x + tl.load(anchors + cluster) * width + channel, mask=exists, other=0.0).to(tl.float32)
        w = tl.maximum(tl.div_rn(1.0, size), weight)
        # From the side that is nearer, so that weights of 0 and 1 are exact.
        mean = tl.where(w < 0.5, mean + w * (anchor - mean), anchor - (anchor - mean) * (1 - w))
    tl.store(merged + cluster * width + channel, mean.to(merged.dtype.element_ty), mask=exists)
