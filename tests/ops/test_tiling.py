"""tango.ops.tiling: cells that tile a grid, whatever their number."""

from __future__ import annotations

import math

import pytest
import torch

from tango.containers import VisualTokens
from tango.ops.tiling import even_shares, pool_frames, tiling

GRIDS = [*((H, W) for H in range(1, 8) for W in range(1, 8)), (14, 14), (13, 13), (1, 40), (40, 1), (7, 12), (12, 7)]


def cells_by_rule(k: int, H: int, W: int) -> list[list[tuple[int, int]]]:
    """The positions of every cell: strips of about square cells, edges at whole-number divisions."""
    R = max(math.floor((k * H / W) ** 0.5 + 0.5), math.ceil(k / W), 1)
    R = min(R, H, k)
    cells = []
    for i in range(R):
        rows = range(i * H // R, (i + 1) * H // R)
        m = (i + 1) * k // R - i * k // R
        for j in range(m):
            cells.append([(y, x) for y in rows for x in range(j * W // m, (j + 1) * W // m)])
    return cells


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_cells_tile_the_grid(grid: tuple[int, int]) -> None:
    H, W = grid
    for k in range(1, H * W + 1):
        cell_of, middles = tiling(k, grid)
        cells = cells_by_rule(k, H, W)
        assert sorted(position for cell in cells for position in cell) == [(y, x) for y in range(H) for x in range(W)]
        for number, cell in enumerate(cells):
            assert {cell_of[y * W + x] for y, x in cell} == {number}
            (top, left), (bottom, right) = min(cell), max(cell)
            assert middles[number] == (top + bottom) // 2 * W + (left + right) // 2
        assert (middles[1:] > middles[:-1]).all()


def test_a_tenth_of_a_frame() -> None:
    cell_of, middles = tiling(20, (14, 14))
    assert cell_of.reshape(14, 14)[:, 0].tolist() == [0] * 3 + [5] * 4 + [10] * 3 + [15] * 4
    assert cell_of.reshape(14, 14)[0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert middles[:6].tolist() == [14, 17, 20, 23, 26, 4 * 14]


def test_every_position_alone() -> None:
    for grid in GRIDS:
        cell_of, middles = tiling(grid[0] * grid[1], grid)
        assert cell_of.tolist() == middles.tolist() == list(range(grid[0] * grid[1]))


def test_even_shares() -> None:
    assert even_shares(7, 3) == [2, 2, 3]
    assert even_shares(2, 5) == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_frames_are_pooled_one_by_one(dtype: torch.dtype) -> None:
    x = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = VisualTokens(features=x, grid=(3, 4), timestamps_s=torch.arange(3.0))
    pruned = pool_frames(tokens, [2, 0, 12])
    cells = cells_by_rule(2, 3, 4)
    assert pruned.indices.tolist() == [4 * 1 + 0, 4 * 1 + 2, *range(24, 36)]
    means = [torch.stack([x[0, y * 4 + c].float() for y, c in cell]).mean(0) for cell in cells]
    torch.testing.assert_close(pruned.features[:2], torch.stack(means).to(dtype))
    assert torch.equal(pruned.features[2:], x[2])
    assert pruned.assignment is not None
    assert pruned.assignment.tolist() == [0, 0, 1, 1] * 3 + [-1] * 12 + list(range(2, 14))
