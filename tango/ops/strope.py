"""ST-RoPE: rotary embedding of a token's time and position, which turns distance in either into dissimilarity."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tango.annotations import Float
from tango.ops.device import to_device

Rotation = Tensor  # cosines and sines for one of the three axes, (positions, 2, section / 2)


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
    (H, W), bases = grid, (base_time, base_space, base_space)
    # One copy to the device for all that the host knows.
    known = [torch.arange(float(count), device="cpu") for count in (H, W)]
    for dim, base in zip(sections, bases, strict=True):
        known.append(base ** -(torch.arange(0.0, dim, 2, device="cpu") / max(dim, 1)))
    rows, columns, *frequencies = to_device(torch.cat(known), device).split([len(part) for part in known])
    rotations = []
    positions = (to_device(timestamps_s.float(), device), rows, columns)
    for position, frequency in zip(positions, frequencies, strict=True):
        angle = torch.outer(position, frequency)
        table = angle.new_empty(len(position), 2, len(frequency))
        torch.cos(angle, out=table[:, 0])
        torch.sin(angle, out=table[:, 1])
        rotations.append(table)
    time, row, column = rotations
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
    position = torch.arange(x.shape[1], device=x.device)
    row, column = row[position // grid[1]], column[position % grid[1]]
    return rotate(x.float(), (time[:, None], row, column))


def check_sections(sections: tuple[int, int, int] | None, dim: int) -> tuple[int, int, int]:
    """Return `sections`, or the default split of `dim`; raise ValueError if they do not fit."""
    if sections is None:
        return rope_sections(dim)
    if len(sections) != 3 or sum(sections) != dim or any(s < 0 or s % 2 for s in sections):
        raise ValueError(f"rope_sections must be three even numbers that add up to D = {dim}, got {sections}")
    return sections
