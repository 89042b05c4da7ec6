"""Gathering, normalising and rotating tokens by one kernel, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tango.ops.strope import Rotation
from tango.shapes import Float, Int

SHAPE = {"CHANNELS": 256}  # rotated at once, each with its partner


def gather_rotated(
    x: Float[Tensor, "T N D"],
    inverse_norms: Float[Tensor, "T N"],
    tokens: Int[Tensor, "R"],
    rotations: tuple[Rotation, Rotation, Rotation],
) -> Float[Tensor, "R D"]:
    """Unit-length, rotated copies of some tokens in float32, as `tango.ops.strope.gather_rotated` makes them.

    Needs a GPU and has no gradient.

    Args:
        tokens: t * N + n of each; any order, repeats allowed.
        rotations: of the time axis, T rows, and of the row and column axes, N rows each.
    Source: eq. 6 and 8 of arXiv:2604.09547.
    """
    _, N, D = x.shape
    rows = torch.empty(len(tokens), D, device=x.device)
    if len(tokens) == 0:
        return rows
    tables = [table.contiguous() for rotation in rotations for table in rotation]
    halves = [cos.shape[1] for cos, _ in rotations]
    with torch.cuda.device_of(x):
        rotate[(len(tokens),)](
            x.contiguous(), inverse_norms.contiguous(), tokens, *tables, rows, N, D, *halves, **SHAPE,
            enable_fp_fusion=True,
        )  # fmt: skip
    return rows


@triton.jit
def rotate(
    x, inverse_norms, tokens, time_cos, time_sin, row_cos, row_sin, column_cos, column_sin, rows,
    tokens_per_frame, width, time_half, row_half, column_half, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write one row."""
    number = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + number)
    frame, place = token // tokens_per_frame, token % tokens_per_frame
    scale = tl.load(inverse_norms + token)
    source, target = x + token * width, rows + number * width
    _rotate_section(source, target, time_cos, time_sin, frame * time_half, time_half, scale, CHANNELS)
    source, target = source + 2 * time_half, target + 2 * time_half
    _rotate_section(source, target, row_cos, row_sin, place * row_half, row_half, scale, CHANNELS)
    source, target = source + 2 * row_half, target + 2 * row_half
    _rotate_section(source, target, column_cos, column_sin, place * column_half, column_half, scale, CHANNELS)


@triton.jit
def _rotate_section(source, target, cos, sin, start, half, scale, CHANNELS: tl.constexpr):
    for first in range(0, half, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        exists = channel < half
        c = tl.load(cos + start + channel, mask=exists, other=0.0)
        s = tl.load(sin + start + channel, mask=exists, other=0.0)
        a = tl.load(source + channel, mask=exists, other=0.0).to(tl.float32)
        b = tl.load(source + half + channel, mask=exists, other=0.0).to(tl.float32)
        tl.store(target + channel, (a * c - b * s) * scale, mask=exists)
        tl.store(target + half + channel, (b * c + a * s) * scale, mask=exists)
