"""Shrinking frames to any number of tokens: cells that tile a frame's grid, and the mean token of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tango.containers import PrunedTokens, VisualTokens
from tango.ops.device import to_device
from tango.ops.merging import cluster_means


def tiling(count: int, grid: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tile a grid with `count` cells: for each of its positions the cell, and for each cell the position in its middle.

    The cells lie in strips of whole rows, about as high as they are wide. Cells and positions are numbered row by row,
    so positions in the middle increase. As many cells as positions leave every position alone.

    Args:
        count: from 1 to H * W.
    """
    H, W = grid
    num_strips = min(H, count, max(1, math.floor(math.sqrt(count * H / W) + 0.5), -(-count // W)))
    cell_of, middles = np.empty((H, W), dtype=np.int64), []
    for (top, bottom), (first, end) in zip(_parts(H, num_strips), _parts(count, num_strips), strict=True):
        for cell, (left, right) in enumerate(_parts(W, end - first), start=first):
            cell_of[top:bottom, left:right] = cell
            middles.append((top + bottom - 1) // 2 * W + (left + right - 1) // 2)
    return cell_of.ravel(), np.array(middles)


def _parts(length: int, count: int) -> Iterator[tuple[int, int]]:
    """Cut `range(length)` into `count` parts whose sizes differ by at most one: start and end of each."""
    return pairwise(i * length // count for i in range(count + 1))


def even_shares(total: int, count: int) -> list[int]:
    """Split `total` into `count` numbers that differ by at most one, larger ones at equal distances."""
    return [end - start for start, end in _parts(total, count)]


def pool_frames(tokens: VisualTokens, counts: Sequence[int]) -> PrunedTokens:
    """Average the tokens of each frame over the cells of a tiling, in float32; each mean stands in its cell's middle.

    Args:
        counts: the number of cells of each frame; a frame with 0 vanishes.
    """
    (T, N, _), device = tokens.features.shape, tokens.features.device
    tilings = {count: tiling(count, tokens.grid) for count in sorted(set(counts) - {0})}
    frames = [t for t, count in enumerate(counts) if count]
    starts = np.cumsum([0, *counts])  # of the kept tokens of each frame
    assignment = np.full((T, N), -1)
    for t in frames:
        assignment[t] = tilings[counts[t]][0] + starts[t]
    indices = to_device(np.concatenate([tilings[counts[t]][1] + t * N for t in frames]), device)
    rows = tokens.features if len(frames) == T else tokens.features.index_select(0, to_device(frames, device))
    means = cluster_means(rows.flatten(0, 1), to_device(assignment[frames].ravel(), device), len(indices))
    return PrunedTokens(features=means, indices=indices, assignment=to_device(assignment.ravel(), device))
