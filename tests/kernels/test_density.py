"""tango.kernels.density: many sets at once, against `density_peaks` of each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tango.ops.clustering import density_peaks
from tests.methods.test_tango_syncs import Spy

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from tango.kernels import density

KERNEL = "tango.kernels.density.density_peaks_varlen"
Interpreter = Callable[..., tuple[Tensor, Tensor]]


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def one_by_one(rows: Tensor, sizes: Sequence[int], num_clusters: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    centres, nearest, start = [], [], 0
    for x, count in zip(rows.split(list(sizes)), num_clusters, strict=True):
        for found, all_ in zip(density_peaks(x[None], count, k=k), (centres, nearest), strict=True):
            all_.append(found[0] + start)
        start += len(x)
    return torch.cat(centres), torch.cat(nearest)


def assert_equal(interpreted: Interpreter, rows: Tensor, sizes: list[int], num_clusters: list[int], k: int = 7) -> None:
    found = interpreted(KERNEL, rows, sizes, num_clusters, k=k, precision="ieee")
    for ours, expected in zip(found, one_by_one(rows, sizes, num_clusters, k), strict=True):
        assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("sizes", "num_clusters", "k", "D"),
    [
        ([1], [1], 7, 4),
        ([1, 2, 1, 9], [1, 1, 1, 3], 7, 16),  # a row alone; fewer rows than neighbours
        ([64, 1, 65], [8, 1, 64], 7, 96),  # a tile, and one row more; a centre per row but one
        ([5, 40, 130], [5, 12, 70], 1, 33),  # more than one tile of centres
        ([66], [9], 63, 20),  # the most neighbours
        ([3, 4], [2, 2], 50, 8),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_equals_each_set_alone(
    interpreted: Interpreter, sizes: list[int], num_clusters: list[int], k: int, D: int, seed: int
) -> None:
    assert_equal(interpreted, unit_rows(sum(sizes), D, seed=seed), sizes, num_clusters, k)


@pytest.mark.parametrize("seed", range(4))
def test_ties_on_the_corners_of_a_cube(interpreted: Interpreter, seed: int) -> None:
    # A handful of distinct distances, all of them exact, so that nearly everything ties, also across tiles.
    rows = torch.randint(0, 2, (90, 4), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    assert_equal(interpreted, rows, [14, 76], [5, 40], 3 + seed)


def test_copies_tie_wherever_they_stand(interpreted: Interpreter) -> None:
    M = 131
    rows = unit_rows(3, 64)[torch.arange(M) % 3]
    centres, nearest = interpreted(KERNEL, rows, [M], [3], k=7)
    assert sorted(centres.tolist()) == [0, 1, 2]
    assert nearest.tolist() == [row % 3 for row in range(M)]
    assert_equal(interpreted, torch.cat([rows, rows[:30]]), [M, 30], [9, 4])


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_rows(interpreted: Interpreter, value: float) -> None:
    centres, nearest = interpreted(KERNEL, torch.full((9, 5), value), [2, 7], [1, 3], k=7)
    assert centres.tolist() == [0, 2, 3, 4]
    assert nearest.tolist() == [0, 0, 2, 3, 4, 2, 2, 2, 2]


def test_a_tick_is_its_sets_own(interpreted: Interpreter) -> None:
    """Distances of the short rows would vanish in ticks of the long ones."""
    rows = unit_rows(60, 24) * torch.tensor([1e-4, 1e4]).repeat_interleave(30)[:, None]
    assert_equal(interpreted, rows, [30, 30], [7, 7])


def test_sets_do_not_see_each_other(interpreted: Interpreter) -> None:
    rows, sizes, num_clusters = unit_rows(100, 24), [20, 66, 14], [3, 9, 14]
    centres, nearest = interpreted(KERNEL, rows, sizes, num_clusters, k=7)
    start = first = 0
    for M, count in zip(sizes, num_clusters, strict=True):
        alone = interpreted(KERNEL, rows[start : start + M], [M], [count], k=7)
        assert torch.equal(centres[first : first + count] - start, alone[0])
        assert torch.equal(nearest[start : start + M] - start, alone[1])
        start, first = start + M, first + count


def test_rows_may_lie_apart_in_memory(interpreted: Interpreter) -> None:
    assert_equal(interpreted, unit_rows(40, 2, 16)[:, 1], [25, 15], [4, 4])


def test_no_sets() -> None:
    centres, nearest = density.density_peaks_varlen(torch.empty(0, 8), [], [], k=7)
    assert centres.shape == nearest.shape == (0,)


@pytest.mark.parametrize(
    ("rows", "sizes", "num_clusters", "k", "message"),
    [
        (unit_rows(5, 4), [5], [6], 7, r"num_clusters must lie in 1\.\.5 .*, got 6"),
        (unit_rows(5, 4), [4, 1], [2, 0], 7, r"num_clusters must lie in 1\.\.1 .*, got 0"),
        (unit_rows(5, 4), [5, 0], [2, 1], 7, r"num_clusters must lie in 1\.\.0 .*, got 1"),
        (unit_rows(5, 4), [5], [2], 0, r"k must lie in 1\.\.63, got 0"),
        (unit_rows(5, 4), [5], [2], 64, r"k must lie in 1\.\.63, got 64"),
        (unit_rows(5, 4), [2, 2], [1, 1], 7, r"5 rows need sizes .*, got sizes \[2, 2\]"),
        (unit_rows(5, 4), [5], [1, 1], 7, r"got sizes \[5\] and num_clusters \[1, 1\]"),
        (unit_rows(5, 4).half(), [5], [1], 7, r"rows must be float32, got torch\.float16"),
    ],
)
def test_bad_arguments_are_refused(
    rows: Tensor, sizes: list[int], num_clusters: list[int], k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        density.density_peaks_varlen(rows, sizes, num_clusters, k=k)


class CountedKernel:
    """Stands for a kernel where there is no GPU to launch it on."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self.grids.append(grid)
        return lambda *_, **__: None


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else [out]:
            self.numel = max(self.numel, tensor.numel())
        return out


def launches(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> tuple[int, list[list[tuple[int, ...]]], int]:
    """Operators, grids of the three kernels, and numbers in the largest tensor, for sets of these sizes."""
    kernels = {name: CountedKernel() for name in ("sum_nearest", "score_peaks", "find_nearest")}
    rows = torch.empty(sum(sizes), 3584, device="meta")
    with monkeypatch.context() as patch, Spy() as spy, LargestTensor() as largest:
        for name, kernel in kernels.items():
            patch.setattr(density, name, kernel)
        centres, nearest = density.density_peaks_varlen(rows, sizes, [max(1, M // 4) for M in sizes], k=7)
    assert len(centres) == sum(max(1, M // 4) for M in sizes)
    assert len(nearest) == len(rows)
    assert spy.reads == spy.uploads == []
    return spy.num_launches, [kernel.grids for kernel in kernels.values()], largest.numel


def test_launches_do_not_depend_on_the_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, many = (launches(monkeypatch, sizes) for sizes in ([1], [150, 6000], [1, 64, 65, 180] * 64))
    assert one[0] == two[0] == many[0] <= 16
    assert one[1] == [[(1,)]] * 3
    assert two[1] == [[(3 + 94,)]] * 3  # one launch of each, a program per 64 rows of a set
    assert many[1] == [[(64 * (1 + 1 + 2 + 3),)]] * 3


def test_memory_grows_with_rows_not_with_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, numel = launches(monkeypatch, [6000])
    assert numel <= 6000 + 1500 + 6 * 94
