"""ST-RoPE of some tokens of a video: gathering, scaling to length 1 and rotating them."""

from __future__ import annotations

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.batched.kernels import kernels_run_on
from tango.ops.device import chunks
from tango.ops.strope import Rotation, rotate


def gather_rotated(
    x: Float[Tensor, "M D"],
    inverse_norms: Float[Tensor, "M"],
    tokens: Int[Tensor, "R"],
    grid: tuple[int, int],
    rotations: tuple[Rotation, Rotation, Rotation],
    *,
    out: Float[Tensor, "R D"],
    kernels: bool = True,
) -> Float[Tensor, "R D"]:
    """Write some tokens of a video, scaled to length 1 and rotated. Token t * N + n is at position n of frame t."""
    if kernels and kernels_run_on(x):
        from tango.batched.kernels import rotation

        return rotation.gather_rotated(x, inverse_norms, tokens, grid, rotations, out=out)
    (H, W), D = grid, x.shape[1]
    position = tokens % (H * W)
    coordinates = (tokens // (H * W), position // W, position % W)
    for chunk in chunks(len(tokens), D * 4, x.device):
        chosen = tokens[chunk]
        turns = (axis.index_select(0, at[chunk]) for axis, at in zip(rotations, coordinates, strict=True))
        rotate(x.index_select(0, chosen).float(), turns, out=out[chunk])
        out[chunk].mul_(inverse_norms.index_select(0, chosen)[:, None])
    return out


def identity_rotations(
    T: int, grid: tuple[int, int], sections: tuple[int, int, int], *, device: torch.device
) -> tuple[Rotation, Rotation, Rotation]:
    """Tables that leave every token as it is."""
    time, row, column = (
        torch.stack([torch.ones(count, dim // 2, device=device), torch.zeros(count, dim // 2, device=device)], dim=1)
        for count, dim in zip((T, *grid), sections, strict=True)
    )
    return time, row, column
