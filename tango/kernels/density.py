"""Density-peaks clustering of many sets of rows by three kernels, whatever the number of sets.

Every program owns a tile of rows of one set and walks over that set's columns; distances live in registers alone.
They are counted in ticks as in `tango.ops.clustering`, so that equal rows tie exactly and sums are exact. As a tick
count stays below 2**21, 32 bits hold a distance and, behind it, a label that tells it from equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from tango.ops.blocks import upload
from tango.shapes import Float, Int

Precision = Literal["ieee", "tf32x3", "tf32"]
MAX_NEIGHBORS = 63  # the nearest of every row are held in registers

# Of a tile. Larger ones spill registers on sm_80; more columns need more label bits.
SHAPE = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32}
_FIELDS = tl.constexpr(6)  # of a tile: see _tiles
_LABEL_BITS = tl.constexpr(7)  # a column of the tile, or COLUMNS and more: one of the nearest so far
_NONE = tl.constexpr(1 << 30)  # more than any distance, labelled or not
_INFINITY_BITS = tl.constexpr(0x7F800000)


def density_peaks_varlen(
    rows: Float[Tensor, "R D"],
    sizes: Sequence[int],
    num_clusters: Sequence[int],
    *,
    k: int,
    precision: Precision = "tf32x3",
) -> tuple[Int[Tensor, "C"], Int[Tensor, "R"]]:
    """Cluster every set of rows as `tango.ops.clustering.density_peaks` clusters it alone, without waiting for the GPU.

    Args:
        rows: the sets one after another, in float32.
        sizes: rows per set; num_clusters: centres per set.
        precision: of the products that distances come from. "tf32x3" errs by a fraction of a tick, "ieee" by about one
            (it adds up a row in sequence): equal rows tie and results are those of `density_peaks`, unless they hang
            on a distance between two ticks. "tf32" reads 11 bits of every number: equal rows tie as well, but
            distances are good to 2**-9 of the largest squared norm, or 2**9 ticks, alone.
    Returns:
        The centres of every set, highest score first, set after set; and for every row its nearest centre (a centre's
        own is itself). Both are rows of `rows`.
    Raises:
        ValueError: sizes and rows or numbers of clusters do not fit, or `k` is outside 1..MAX_NEIGHBORS.
    Source: eq. 4 of arXiv:2604.09547.
    """
    _check(rows, sizes, num_clusters, k)
    if len(sizes) == 0:
        return (torch.empty(0, dtype=torch.long, device=rows.device),) * 2
    tiles = _tiles(sizes, num_clusters)
    starts = np.cumsum(sizes) - sizes
    first_of_set = np.cumsum(num_clusters) - num_clusters
    # In an order by set and score, a set's centres are the first of its places.
    places = np.repeat(starts - first_of_set, num_clusters) + np.arange(sum(num_clusters))
    plan = upload(np.concatenate([tiles.ravel(), places]), rows.device)
    rows, grid = rows.contiguous(), (len(tiles),)
    inputs = (rows, torch.linalg.vector_norm(rows, dim=1).square(), plan, rows.shape[1])
    key, nearest = (torch.empty(len(rows), dtype=torch.long, device=rows.device) for _ in range(2))
    exponent = torch.empty(len(rows), device=rows.device)
    options = {**SHAPE, "PRECISION": precision, "enable_fp_fusion": True}

    with torch.cuda.device_of(rows):
        # A row itself is one of its nearest.
        sum_nearest[grid](*inputs, key, exponent, KEEP=k + 1, SLOTS=triton.next_power_of_2(k + 1), **options)
        order = key.sort(stable=True).indices
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        score_peaks[grid](*inputs, rank, exponent.exp_(), key, **options)
        centres = key.sort(stable=True).indices.index_select(0, plan[tiles.size :])
        find_nearest[grid](*inputs, centres.sort().values, nearest, **options)
    return centres, nearest


def _check(rows: Tensor, sizes: Sequence[int], num_clusters: Sequence[int], k: int) -> None:
    if rows.dtype != torch.float32:
        raise ValueError(f"rows must be float32, got {rows.dtype}")
    if sum(sizes) != len(rows) or len(sizes) != len(num_clusters):
        raise ValueError(
            f"{len(rows)} rows need sizes that add up to them and as many num_clusters, "
            f"got sizes {list(sizes)} and num_clusters {list(num_clusters)}"
        )
    for M, count in zip(sizes, num_clusters, strict=True):
        if not 1 <= count <= M:
            raise ValueError(f"num_clusters must lie in 1..{M} (the number of rows), got {count}")
    if not 1 <= k <= MAX_NEIGHBORS:
        raise ValueError(f"k must lie in 1..{MAX_NEIGHBORS}, got {k}")


def _tiles(sizes: Sequence[int], num_clusters: Sequence[int]) -> NDArray[np.int64]:
    """Of every tile: set, first row of tile and of set, end of set, first and end of the set's centres."""
    ends, centre_ends = np.cumsum(sizes), np.cumsum(num_clusters)
    counts = -(-np.asarray(sizes) // SHAPE["ROWS"])
    sets = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(sets)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the tile within its set
    begins = (ends - sizes)[sets]
    centre_begins = (centre_ends - num_clusters)[sets]
    return np.stack([sets, begins + number * SHAPE["ROWS"], begins, ends[sets], centre_begins, centre_ends[sets]], 1)


@triton.jit
def sum_nearest(
    rows, squares, plan, width, key, exponent,
    KEEP: tl.constexpr, SLOTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum the distances from every row to the nearest of its set.

    `key` orders rows by set and sum; `exponent` is the logarithm of the density.
    """
    set_, row, begin, end, _, _ = _tile(plan, ROWS)
    tick = _tick(squares, begin, end)
    slot = tl.arange(0, SLOTS)[None, :]
    label = tl.arange(0, COLUMNS)[None, :]
    nearest = tl.full((ROWS, SLOTS), _NONE, tl.int32)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        ticks = _ticks(rows, squares, width, row, row < end, column, column < end, tick, COLUMNS, DEPTH, PRECISION)
        found = tl.where((column < end)[None, :], (ticks << _LABEL_BITS) + label, _NONE)
        before = nearest
        for i in range(KEEP):
            least = tl.minimum(tl.min(found, 1), tl.min(before, 1))[:, None]
            relabelled = ((least >> _LABEL_BITS) << _LABEL_BITS) + COLUMNS + slot
            nearest = tl.where(slot == i, relabelled, nearest)
            found = tl.where(found == least, _NONE, found)
            before = tl.where(before == least, _NONE, before)
    total = tl.sum(tl.where(nearest < _NONE, nearest >> _LABEL_BITS, 0), 1)
    neighbours = tl.maximum(tl.minimum(end - begin, KEEP) - 1, 1)
    tl.store(key + row, (set_.to(tl.int64) << 32) + total, mask=row < end)
    tl.store(exponent + row, total.to(tl.float32) * tl.div_rn(-tick, neighbours.to(tl.float32)), mask=row < end)


@triton.jit
def score_peaks(
    rows, squares, plan, width, rank, density, key,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weigh the density of every row by its distance to the nearest denser one.

    `rank` orders rows by set and density; `key` orders them by set and decreasing score.
    """
    set_, row, begin, end, _, _ = _tile(plan, ROWS)
    tick = _tick(squares, begin, end)
    own_rank = tl.load(rank + row, mask=row < end, other=0)
    delta = tl.full((ROWS,), _NONE, tl.int32)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        ticks = _ticks(rows, squares, width, row, row < end, column, column < end, tick, COLUMNS, DEPTH, PRECISION)
        denser = tl.load(rank + column, mask=column < end, other=_NONE)[None, :] < own_rank[:, None]
        delta = tl.minimum(delta, tl.min(tl.where(denser, ticks, _NONE), 1))
    score = tl.load(density + row, mask=row < end, other=0.0) * tl.sqrt_rn(delta.to(tl.float32))
    bits = tl.where(delta == _NONE, _INFINITY_BITS, score.to(tl.int32, bitcast=True))  # in the order of the scores
    tl.store(key + row, (set_.to(tl.int64) << 32) + (_INFINITY_BITS - bits), mask=row < end)


@triton.jit
def find_nearest(
    rows, squares, plan, width, centres, nearest,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Find the nearest centre of every row: itself, or else the lowest of the nearest. `centres` are in order."""
    _, row, begin, end, first_centre, end_centre = _tile(plan, ROWS)
    tick = _tick(squares, begin, end)
    label = tl.arange(0, COLUMNS)
    distance = tl.full((ROWS,), _NONE, tl.int32)
    place = tl.full((ROWS,), 0, tl.int32)
    for first in range(first_centre, end_centre, COLUMNS):
        is_centre = first + label < end_centre
        column = tl.load(centres + first + label, mask=is_centre, other=0).to(tl.int32)
        ticks = _ticks(rows, squares, width, row, row < end, column, is_centre, tick, COLUMNS, DEPTH, PRECISION)
        ticks = tl.where(row[:, None] == column[None, :], -1, ticks)
        least = tl.min(tl.where(is_centre[None, :], (ticks << _LABEL_BITS) + label[None, :], _NONE), 1)
        closer = (least >> _LABEL_BITS) < distance
        place = tl.where(closer, first + (least & (COLUMNS - 1)), place)
        distance = tl.where(closer, least >> _LABEL_BITS, distance)
    tl.store(nearest + row, tl.load(centres + place), mask=row < end)


@triton.jit
def _tile(plan, ROWS: tl.constexpr):
    """What `_tiles` says of this program's tile, with all rows of the tile in place of the first."""
    fields = plan + tl.program_id(0) * _FIELDS
    row = tl.load(fields + 1).to(tl.int32) + tl.arange(0, ROWS)
    set_, begin, end = tl.load(fields), tl.load(fields + 2).to(tl.int32), tl.load(fields + 3).to(tl.int32)
    return set_, row, begin, end, tl.load(fields + 4).to(tl.int32), tl.load(fields + 5).to(tl.int32)


@triton.jit
def _tick(squares, begin, end):
    """One tick of a set, as a squared length."""
    largest = tl.full((256,), 1.1754943508222875e-38, tl.float32)  # the least normal number
    for first in range(begin, end, 256):
        row = first + tl.arange(0, 256)
        largest = tl.maximum(largest, tl.load(squares + row, mask=row < end, other=0.0))
    return tl.max(largest, 0) * (1 / 2**18)


@triton.jit
def _ticks(
    rows, squares, width, row, row_exists, column, column_exists, tick,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Squared distances in ticks between a tile's rows and columns, which both are rows."""
    depth = tl.arange(0, DEPTH)[None, :]
    left = rows + row.to(tl.int64)[:, None] * width + depth
    right = rows + column.to(tl.int64)[:, None] * width + depth
    products = tl.full((row.shape[0], COLUMNS), 0.0, tl.float32)
    for first in range(0, width, DEPTH):
        a = tl.load(left + first, mask=row_exists[:, None] & (first + depth < width), other=0.0)
        b = tl.load(right + first, mask=column_exists[:, None] & (first + depth < width), other=0.0)
        # Tensor cores round sums towards zero, which over a whole row makes ten ticks. For tf32x3 the compiler adds up
        # each product's three parts apart and the products here, in float32.
        products += tl.dot(a, tl.trans(b), input_precision=PRECISION)
    row_squares = tl.load(squares + row, mask=row_exists, other=0.0)[:, None]
    column_squares = tl.load(squares + column, mask=column_exists, other=0.0)[None, :]
    ticks = tl.div_rn(products * -2 + row_squares + column_squares, tick)
    ticks = (ticks + 1.5 * 2**23) - 1.5 * 2**23  # float32 has no fractions up there: the nearest whole number
    return tl.maximum(ticks, 0.0).to(tl.int32)
