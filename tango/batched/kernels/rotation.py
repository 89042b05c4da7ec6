"""Gathering, normalising and rotating tokens in one kernel, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tango.annotations import Float, Int

SHAPE = {"CHANNELS": 256}  # rotated at once, each with its partner channel


def gather_rotated(
    x: Float[Tensor, "M D"],
    inverse_norms: Float[Tensor, "M"],
    tokens: Int[Tensor, "R"],
    grid: tuple[int, int],
    rotations: tuple[Float[Tensor, "T 2 time"], Float[Tensor, "H 2 row"], Float[Tensor, "W 2 column"]],
    *,
    out: Float[Tensor, "R D"],
) -> Float[Tensor, "R D"]:
    """Write some tokens of a video, scaled to length 1 and rotated; needs a GPU and has no gradient.

    Channel i of each section is rotated together with channel i + half a section, as by `tango.ops.strope.rotate`.

    Args:
        tokens: t * N + n for position n of frame t; in any order, repeats allowed.
        rotations: cosines and sines of the half sections, for every frame, row and column.
        out: float32, its rows contiguous.
    Source: eq. 6 and 8 of arXiv:2604.09547.
    """
    (H, W), D = grid, x.shape[1]
    if len(tokens):
        tables = [axis.contiguous() for axis in rotations]
        halves = [axis.shape[2] for axis in tables]
        x, inverse_norms = x.contiguous(), inverse_norms.contiguous()
        with torch.cuda.device_of(x):
            rotate[(len(tokens),)](
                x, inverse_norms, tokens, *tables, out, H, W, D, out.stride(0), *halves, **SHAPE, enable_fp_fusion=True
            )
    return out


@triton.jit
def rotate(
    x, inverse_norms, tokens, time, row, column, out,
    H, W, width, out_width, time_half, row_half, column_half, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write one token."""
    number = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + number)
    frame, position = token // (H * W), token % (H * W)
    scale = tl.load(inverse_norms + token)
    source, target = x + token * width, out + number * out_width
    _rotate_section(source, target, time + frame * 2 * time_half, time_half, scale, CHANNELS)
    source, target = source + 2 * time_half, target + 2 * time_half
    _rotate_section(source, target, row + position // W * 2 * row_half, row_half, scale, CHANNELS)
    source, target = source + 2 * row_half, target + 2 * row_half
    _rotate_section(source, target, column + position % W * 2 * column_half, column_half, scale, CHANNELS)


@triton.jit
def _rotate_section(source, target, table, half, scale, CHANNELS: tl.constexpr):
    for first in range(0, half, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        exists = channel < half
        cos = tl.load(table + channel, mask=exists, other=0.0)
        sin = tl.load(table + half + channel, mask=exists, other=0.0)
        a = tl.load(source + channel, mask=exists, other=0.0).to(tl.float32)
        b = tl.load(source + half + channel, mask=exists, other=0.0).to(tl.float32)
        tl.store(target + channel, (a * cos - b * sin) * scale, mask=exists)
        tl.store(target + half + channel, (b * cos + a * sin) * scale, mask=exists)
