"""tango.ops.similarity: cosines that tie exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from tango.ops.similarity import gram, mean_pair_cosines, paired_cosines, unit_cosines, unit_rows, unit_self_cosines


def test_equals_the_cosine() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 16, generator=g), torch.randn(2, 7, 16, generator=g)
    expected = F.cosine_similarity(a[:, :, None], b[:, None], dim=-1)
    torch.testing.assert_close(unit_cosines(unit_rows(a), unit_rows(b)), expected, rtol=0, atol=2**-18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_rows_tie(dtype: torch.dtype) -> None:
    row = torch.randn(1, 3584, generator=torch.Generator().manual_seed(0)).to(dtype)
    unit = unit_rows(row.expand(50, -1))
    assert unit.dtype == torch.float32
    assert (unit_cosines(unit, unit) == 1).all()


@pytest.mark.parametrize("M", [1, 64, 65, 130, 513])
def test_gram_matrix_from_its_upper_triangle(M: int) -> None:
    x = unit_rows(torch.randn(2, M, 9, generator=torch.Generator().manual_seed(M)))
    torch.testing.assert_close(gram(x), x @ x.mT, rtol=0, atol=1e-6)
    torch.testing.assert_close(gram(x[0]), x[0] @ x[0].mT, rtol=0, atol=1e-6)


def test_self_cosines_of_equal_rows_tie() -> None:
    rows = torch.randn(2, 3584, generator=torch.Generator().manual_seed(0)).repeat(70, 1)
    cosines = unit_self_cosines(unit_rows(rows))
    assert torch.equal(cosines, cosines[:2, :2].repeat(70, 70))
    assert (cosines.diagonal() == 1).all()


def test_zeros_stay_zeros() -> None:
    assert unit_rows(torch.zeros(2, 3)).tolist() == [[0, 0, 0]] * 2


def test_paired_cosines_are_the_diagonal() -> None:
    a, b = unit_rows(torch.randn(2, 9, 33, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(paired_cosines(a, b), unit_cosines(a, b).diagonal())


def test_paired_cosines_of_equal_rows_tie() -> None:
    rows = torch.randn(60, 3584, generator=torch.Generator().manual_seed(0))
    assert (paired_cosines(unit_rows(rows), unit_rows(2 * rows)) == 1).all()


@pytest.mark.parametrize("size", [1, 2, 50])
def test_mean_pair_cosines_equal_loops(cut_into_blocks: Callable[[int], None], size: int) -> None:
    cut_into_blocks(size)
    x = torch.randn(9, 4, 6, generator=torch.Generator().manual_seed(0))
    lengths = [3, 1, 5]
    for segment, frames in zip(mean_pair_cosines(x, lengths), x.split(lengths), strict=True):
        for n, found in enumerate(segment):
            pairs = [F.cosine_similarity(a[n], b[n], dim=0) for a, b in permutations(frames, 2)] or [torch.tensor(-1.0)]
            torch.testing.assert_close(found, torch.stack(pairs).mean())


def test_mean_pair_cosines_of_zeros_are_zero() -> None:
    assert mean_pair_cosines(torch.zeros(3, 2, 4), [3]).tolist() == [[0.0, 0.0]]
