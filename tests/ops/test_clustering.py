"""tango.ops.clustering: density peaks with k nearest neighbours, against loops written from eq. 4 of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tango.ops import clustering
from tango.ops.clustering import density_peaks, dpc_knn

Limits = Callable[[int, int], None]


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def density_peaks_by_loops(x: Tensor, num_clusters: int, k: int) -> tuple[list[int], list[int]]:
    """Eq. 4 row by row in double precision. Among equals the lower row counts as denser, scores higher, is nearer."""
    points = x.double().tolist()
    M = len(points)
    squared = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points] for p in points]
    density = []
    for i in range(M):
        neighbours = sorted(squared[i][j] for j in range(M) if j != i)[:k]
        density.append(math.exp(-sum(neighbours) / len(neighbours)) if neighbours else 1.0)
    score = []
    for i in range(M):
        denser = [j for j in range(M) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta = min(squared[i][j] for j in denser) if denser else max(squared[i])
        score.append(density[i] * math.sqrt(delta))
    centres = sorted(range(M), key=lambda i: (-score[i], i))[:num_clusters]
    nearest = [i if i in centres else min(sorted(centres), key=lambda c: squared[i][c]) for i in range(M)]
    return centres, nearest


def assert_equals_loops(x: Tensor, num_clusters: int, k: int) -> None:
    centres, nearest = density_peaks(x[None], num_clusters, k=k)
    assert (centres[0].tolist(), nearest[0].tolist()) == density_peaks_by_loops(x, num_clusters, k)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()  # an expanded view costs nothing
                self.numel = max(self.numel, min(tensor.numel(), storage))
        return out


class TestAgainstLoops:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("M", "num_clusters", "k"), [(2, 1, 7), (9, 3, 7), (20, 5, 1), (40, 12, 7), (40, 39, 3)])
    def test_random_rows(self, M: int, num_clusters: int, k: int, seed: int) -> None:
        assert_equals_loops(unit_rows(M, 16, seed=seed), num_clusters, k)

    def test_rows_of_different_length(self) -> None:
        x = unit_rows(30, 8) * torch.linspace(0.2, 1.5, 30)[:, None]
        assert_equals_loops(x, 6, 5)

    @given(st.data())
    def test_ties_on_the_corners_of_a_cube(self, data: st.DataObject) -> None:
        # Corners of a 4-cube: a handful of distinct distances, all of them exact, so nearly everything ties.
        corner = st.lists(st.sampled_from([-1.0, 1.0]), min_size=4, max_size=4)
        rows = data.draw(st.lists(corner, min_size=1, max_size=14))
        num_clusters = data.draw(st.integers(1, len(rows)))
        assert_equals_loops(torch.tensor(rows), num_clusters, data.draw(st.integers(1, 8)))


class TestByHand:
    def test_three_clumps_on_a_line(self) -> None:
        line = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0, 9.1, 9.2])
        x = torch.stack([line, torch.zeros(9)], dim=1)
        centres, nearest = density_peaks(x[None], 3, k=2)
        assert centres.sort().values.tolist() == [[1, 4, 7]]
        assert nearest.tolist() == [[1, 1, 1, 4, 4, 4, 7, 7, 7]]
        assert dpc_knn(x, 3, k=2)[0].sort().values.tolist() == [1, 4, 7]

    def test_densest_row_comes_first(self) -> None:
        x = torch.tensor([[0.0], [9.0], [9.1], [9.2], [3.0]])
        centres, _ = density_peaks(x[None], 3, k=2)
        assert centres[0, 0] == 2
        assert density_peaks(x[None], 1, k=2)[0].tolist() == [[2]]

    def test_one_row(self) -> None:
        centres, nearest = density_peaks(torch.ones(1, 1, 4), 1)
        assert (centres.tolist(), nearest.tolist()) == ([[0]], [[0]])

    def test_as_many_clusters_as_rows(self) -> None:
        x = unit_rows(6, 4)
        assert sorted(dpc_knn(x, 6)[0].tolist()) == list(range(6))
        assert density_peaks(x[None], 6)[1].tolist() == [list(range(6))]

    def test_more_neighbours_than_rows_means_all_rows(self) -> None:
        x = unit_rows(1, 6, 8)
        for many, all_ in zip(density_peaks(x, 3, k=100), density_peaks(x, 3, k=5), strict=True):
            assert torch.equal(many, all_)

    def test_dpc_knn_says_which_centre_is_nearest(self) -> None:
        x = unit_rows(50, 8)
        (centres, assignment), (peaks, nearest) = dpc_knn(x, 10), density_peaks(x[None], 10)
        assert torch.equal(centres, peaks[0])
        assert torch.equal(centres[assignment], nearest[0])


class TestTies:
    @pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
    def test_equal_rows(self, value: float) -> None:
        centres, nearest = density_peaks(torch.full((1, 7, 5), value), 3)
        assert centres.tolist() == [[0, 1, 2]]
        assert nearest.tolist() == [[0, 1, 2, 0, 0, 0, 0]]  # centres stand for themselves

    @pytest.mark.parametrize("M", [12, 70, 130, 600])  # with the Gram matrix in one piece and in blocks of rows
    def test_copies_are_equal_to_the_last_bit_wherever_they_stand(self, M: int) -> None:
        x = unit_rows(3, 64)[torch.arange(M) % 3]
        centres, nearest = density_peaks(x[None], 3)
        assert sorted(centres[0].tolist()) == [0, 1, 2]
        assert nearest[0].tolist() == [row % 3 for row in range(M)]

    def test_nearest_centre_of_a_row_in_the_middle_is_the_lower(self) -> None:
        x = torch.tensor([[1.0, 1], [1, 1], [0, 1], [-1, 1], [-1, 1]])  # row 2 is as far from row 0 as from row 3
        centres, nearest = density_peaks(x[None], 2, k=1)
        assert sorted(centres[0].tolist()) == [0, 3]
        assert nearest.tolist() == [[0, 0, 0, 3, 3]]


class TestSets:
    def test_sets_are_clustered_apart(self) -> None:
        x = unit_rows(4, 30, 12)
        centres, nearest = density_peaks(x, 6)
        for b in range(4):
            alone = density_peaks(x[b : b + 1], 6)
            assert torch.equal(centres[b], alone[0][0])
            assert torch.equal(nearest[b], alone[1][0])

    def test_fewer_rows_than_neighbours(self) -> None:
        centres, _ = density_peaks(unit_rows(1, 3, 6), 3, k=7)
        assert sorted(centres[0].tolist()) == [0, 1, 2]

    def test_leaves_its_input_alone(self) -> None:
        x = unit_rows(2, 20, 8)
        before = x.clone()
        density_peaks(x, 4)
        assert torch.equal(x, before)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        x = unit_rows(1, 40, 32).to(dtype)
        for low, full in zip(density_peaks(x, 7), density_peaks(x.float(), 7), strict=True):
            assert torch.equal(low, full)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Sets how many distances are held, and how many looked at at once."""

    def set_limits(held: int, block: int) -> None:
        monkeypatch.setattr(clustering, "_MAX_HELD", held)
        monkeypatch.setattr(clustering, "_MAX_BLOCK", block)

    return set_limits


class TestMemory:
    @pytest.mark.parametrize("held", [0, 40 * 40 * 3])
    @pytest.mark.parametrize("block", [1, 100, 40 * 3 * 7, 40 * 40 * 3 - 1])
    def test_blocks_change_nothing(self, limits: Limits, held: int, block: int) -> None:
        x = unit_rows(3, 40, 16)
        x[:, 20:25] = x[:, 3:8]  # some ties
        whole = density_peaks(x, 9)
        limits(held, block)
        for blocked, expected in zip(density_peaks(x, 9), whole, strict=True):
            assert torch.equal(blocked, expected)

    def test_no_tensor_exceeds_the_bound_where_no_matrix_is_held(self, limits: Limits) -> None:
        M, bound = 300, 4000
        x = unit_rows(2, M, 4)  # 2400 numbers; all distances would be 180 000
        limits(2 * M * M - 1, bound)
        with LargestTensor() as largest:
            density_peaks(x, 100, k=3)
        assert bound // 2 < largest.numel <= bound

    def test_the_default_bounds(self) -> None:
        assert clustering._MAX_HELD * 4 == 1 << 30
        assert clustering.MAX_HELD_GPU * 4 == 1 << 29


class TestProducts:
    """Of all products between rows, which a plain version needs once for distances and M C times more for centres."""

    def share(self) -> float:
        M, D, C = 400, 64, 20
        with FlopCounterMode(display=False) as flops:
            density_peaks(unit_rows(1, M, D), C)
        return flops.get_total_flops() / (2 * M * M * D)

    def test_about_half_where_a_matrix_is_held(self) -> None:
        assert 0.5 < self.share() < 0.65

    def test_about_half_in_each_of_two_passes_where_none_is(self, limits: Limits) -> None:
        limits(0, 100 * 100)
        assert 1.0 < self.share() < 1.35  # a twentieth more for the centres


@pytest.mark.parametrize("num_clusters", [0, -1, 6])
def test_cluster_counts_out_of_range_are_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"num_clusters must lie in 1\.\.5 .*, got {num_clusters}"):
        dpc_knn(unit_rows(5, 4), num_clusters)


@pytest.mark.parametrize("k", [0, -3])
def test_neighbour_counts_below_one_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        dpc_knn(unit_rows(5, 4), 2, k=k)
