"""ST-RoPE: rotary embedding of a token's time and place, which turns distance in either into dissimilarity."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tango.kernels import kernels_run_on
from tango.ops.blocks import blocks, upload
from tango.shapes import Float, Int

# Cosines and sines for one of the three axes, (positions, 2, section / 2)
Rotation = Tensor


def rope_sections(dim: int) -> tuple[int, int, int]:
    """Split D channels into three even, nearly equal sections for time, row and column.

    D = 3584 gives 1196, 1194, 1194, as in the release.

    Raises:
        ValueError: `dim` is not positive and even.
    Deviation: the paper prints 1186, 1184, 1184 for D = 3584, which does not add up.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"rotary embedding needs a positive, even number of channels, got {dim}")
    third, rest = divmod(dim // 2, 3)
    time, row, column = (2 * (third + (axis < rest)) for axis in range(3))
    return time, row, column


def strope_rotations(
    timestamps_s: Float[Tensor, "T"],
    grid: tuple[int, int],
    sections: tuple[int, int, int],
    *,
    base_time: float,
    base_space: float,
    device: torch.device,
) -> tuple[Rotation, Rotation, Rotation]:
    """Tabulate the rotations of the time, row and column axes (T, H and W rows).

    Source: eq. 7 of arXiv:2604.09547, in float32 as the release does.
    """
    H, W = grid
    axes = (
        (upload(timestamps_s.float(), device), sections[0], base_time),
        (torch.arange(H, device=device, dtype=torch.float32), sections[1], base_space),
        (torch.arange(W, device=device, dtype=torch.float32), sections[2], base_space),
    )
    rotations = []
    for position, dim, base in axes:
        exponent = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / max(dim, 1)
        angle = torch.outer(position, base**-exponent)
        rotations.append(torch.stack([angle.cos(), angle.sin()], dim=1))
    time, row, column = rotations
    return time, row, column


def identity_rotations(
    T: int, grid: tuple[int, int], sections: tuple[int, int, int], *, device: torch.device
) -> tuple[Rotation, Rotation, Rotation]:
    """Tables of the same shapes that leave every token as it is."""
    time, row, column = (
        torch.stack([torch.ones(count, dim // 2, device=device), torch.zeros(count, dim // 2, device=device)], dim=1)
        for count, dim in zip((T, *grid), sections, strict=True)
    )
    return time, row, column


def rotate(
    x: Float[Tensor, "... D"], rotations: Iterable[Rotation], *, out: Tensor | None = None
) -> Float[Tensor, "... D"]:
    """Rotate channel i of each section together with channel i + half a section.

    The tables must broadcast over the leading axes of `x`. Lengths, and so cosine and Euclidean distances at equal
    positions, are preserved.

    Source: eq. 6 and 8 of arXiv:2604.09547.
    Deviation: channels are paired by halves, as in the release, not with their neighbour as in eq. 8.
    """
    out = torch.empty_like(x, dtype=torch.float32) if out is None else out
    start = 0
    for cos, sin in (rotation.unbind(-2) for rotation in rotations):
        middle, end = start + cos.shape[-1], start + 2 * cos.shape[-1]
        first, second = x[..., start:middle], x[..., middle:end]
        torch.mul(first, cos, out=out[..., start:middle]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., middle:end]).addcmul_(first, sin)
        start = end
    return out


def strope(
    x: Float[Tensor, "T N D"],
    timestamps_s: Float[Tensor, "T"],
    grid: tuple[int, int],
    *,
    sections: tuple[int, int, int] | None = None,
    base_time: float = 1e4,
    base_space: float = 1e3,
) -> Float[Tensor, "T N D"]:
    """Rotate every token by its time (seconds), row and column, in float32.

    Args:
        sections: channels for time, row and column; all even, together D. None: `rope_sections(D)`.
    Raises:
        ValueError: the sections do not fit D, or the grid does not fit N.
    Source: section 4.3, eq. 6-8 of arXiv:2604.09547.
    """
    sections = check_sections(sections, x.shape[-1])
    if grid[0] * grid[1] != x.shape[1]:
        raise ValueError(f"a {grid} grid has {grid[0] * grid[1]} tokens, got {x.shape[1]}")
    time, row, column = strope_rotations(
        timestamps_s, grid, sections, base_time=base_time, base_space=base_space, device=x.device
    )
    place = torch.arange(x.shape[1], device=x.device)
    row, column = row[place // grid[1]], column[place % grid[1]]
    return rotate(x.float(), (time[:, None], row, column))


def gather_rotated(
    x: Float[Tensor, "M D"],
    inverse_norms: Float[Tensor, "M"],
    tokens: Int[Tensor, "R"],
    grid: tuple[int, int],
    rotations: tuple[Rotation, Rotation, Rotation],
    *,
    out: Float[Tensor, "R D"],
) -> Float[Tensor, "R D"]:
    """Write rows of unit length, rotated, of some tokens of a video: t * N + n for place n of frame t."""
    if kernels_run_on(x):
        from tango.kernels import rotation

        return rotation.gather_rotated(x, inverse_norms, tokens, grid, rotations, out=out)
    (H, W), D = grid, x.shape[1]
    place = tokens % (H * W)
    positions = (tokens // (H * W), place // W, place % W)
    for block in blocks(len(tokens), D * 4, x.device):
        chosen = tokens[block]
        turns = (axis.index_select(0, at[block]) for axis, at in zip(rotations, positions, strict=True))
        rotate(x.index_select(0, chosen).float(), turns, out=out[block])
        out[block].mul_(inverse_norms.index_select(0, chosen)[:, None])
    return out


def check_sections(sections: tuple[int, int, int] | None, dim: int) -> tuple[int, int, int]:
    """Return `sections`, or the default split of `dim`; raise ValueError if they do not fit."""
    if sections is None:
        return rope_sections(dim)
    if len(sections) != 3 or sum(sections) != dim or any(s < 0 or s % 2 for s in sections):
        raise ValueError(f"rope_sections must be three even numbers that add up to D = {dim}, got {sections}")
    return sections
