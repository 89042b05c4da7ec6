"""tango.batched.clustering: many sets of different sizes, clustered in a few batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tango.batched import clustering
from tango.batched.clustering import density_peaks_of_sets
from tango.ops.clustering import TICK_LENGTH, Ticks, density_peaks

GPU = torch.device("cuda")
SIZES = [12, 5, 40, 12, 1, 70, 33, 12, 2]
COUNTS = [4, 2, 11, 1, 1, 30, 5, 12, 1]


def random_rows(num: int, seed: int = 0) -> Tensor:
    x = F.normalize(torch.randn(num, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)
    x[num // 3 : num // 2] = x[: num // 2 - num // 3]  # some rows are alike
    return x


def clustered(rows: Tensor, sizes: list[int], counts: list[int], *, k: int) -> tuple[Tensor, Tensor]:
    return density_peaks_of_sets(
        lambda numbers: rows[numbers] / TICK_LENGTH, np.array(sizes), np.array(counts), k=k, device=rows.device
    )


def one_by_one(rows: Tensor, sizes: list[int], counts: list[int], k: int) -> tuple[Tensor, Tensor]:
    found, start = [], 0
    for own, count in zip(rows.split(sizes), counts, strict=True):
        centres, nearest = density_peaks(own[None], count, k=k)
        found.append((centres[0] + start, nearest[0] + start))
        start += len(own)
    centres_of, nearest_of = zip(*found, strict=True)
    return torch.cat(centres_of), torch.cat(nearest_of)


@pytest.fixture(params=["of one size", "few", "one"])
def divided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are divided into buckets as on a CPU, as on a GPU, and all padded to the largest."""
    if request.param != "of one size":
        buckets = clustering._buckets
        monkeypatch.setattr(clustering, "_GPU_BUCKETS", 3 if request.param == "few" else 1)
        monkeypatch.setattr(clustering, "_BUCKET_COST", 1)
        monkeypatch.setattr(clustering, "_buckets", lambda sizes, _: buckets(sizes, GPU))


@pytest.mark.usefixtures("divided")
class TestEqualsOneByOne:
    @pytest.mark.parametrize("k", [1, 3, 7, 100])
    @pytest.mark.parametrize("seed", range(3))
    def test_in_any_order(self, k: int, seed: int) -> None:
        order = torch.randperm(len(SIZES), generator=torch.Generator().manual_seed(seed)).tolist()
        sizes, counts = [SIZES[i] for i in order], [COUNTS[i] for i in order]
        rows = random_rows(sum(sizes), seed)
        for found, expected in zip(
            clustered(rows, sizes, counts, k=k), one_by_one(rows, sizes, counts, k), strict=True
        ):
            assert torch.equal(found, expected)

    def test_distances_beyond_the_bound_are_worked_on_in_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = random_rows(sum(SIZES))
        whole = clustered(rows, SIZES, COUNTS, k=7)
        for bound in (1, 200, 3000):
            monkeypatch.setattr("tango.batched.clustering._MAX_BATCH_CPU", bound)
            monkeypatch.setattr("tango.batched.clustering.MAX_HELD_GPU", bound)
            for found, expected in zip(clustered(rows, SIZES, COUNTS, k=7), whole, strict=True):
                assert torch.equal(found, expected)

    def test_sets_of_one_size_with_different_numbers_of_clusters(self) -> None:
        sizes, counts = [9, 9, 9], [9, 1, 4]
        rows = random_rows(27)
        for found, expected in zip(
            clustered(rows, sizes, counts, k=7), one_by_one(rows, sizes, counts, 7), strict=True
        ):
            assert torch.equal(found, expected)


def test_distances_of_minus_zero_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounds to -0 between equal rows ties with what rounds to 0."""
    rows = random_rows(5)[[0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]]
    expected = one_by_one(rows, [11], [9], 3)
    to_denser = Ticks.to_denser

    def with_minus_zeros(ticks: Ticks, rank: Tensor) -> Tensor:
        delta = to_denser(ticks, rank)
        return torch.where((delta == 0) & (rank % 2 == 0), -0.0, delta)

    monkeypatch.setattr(Ticks, "to_denser", with_minus_zeros)
    for found, correct in zip(clustered(rows, [11], [9], k=3), expected, strict=True):
        assert torch.equal(found, correct)


@pytest.mark.parametrize("num_clusters", [0, 6])
def test_counts_out_of_range_are_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"num_clusters must lie in 1\.\.5 .*, got {num_clusters}"):
        clustered(random_rows(8), [3, 5], [1, num_clusters], k=7)


class TestBuckets:
    @staticmethod
    def work(sizes: list[int], device: torch.device) -> tuple[int, int]:
        """Number of buckets, and of distances worked out in them."""
        found = list(clustering._buckets(np.array(sizes), device))
        assert sorted(np.concatenate(found).tolist()) == list(range(len(sizes)))
        return len(found), sum(len(sets) * max(sizes[i] for i in sets) ** 2 for sets in found)

    def test_a_cpu_pads_nothing(self) -> None:
        num, work = self.work(SIZES, torch.device("cpu"))
        assert (num, work) == (len(set(SIZES)), sum(size**2 for size in SIZES))

    def test_a_gpu_takes_small_sets_at_once(self) -> None:
        assert self.work(SIZES, GPU)[0] == 1

    def test_a_gpu_parts_few_large_sets_from_many_small_ones(self) -> None:
        sizes = [2000, 50, 184, 184, 1900] + [184] * 250
        num, work = self.work(sizes, GPU)
        assert num == 2
        assert work < 1.1 * sum(size**2 for size in sizes)

    def cuts(self, num: int) -> Iterator[list[int]]:
        """All ways to cut `num` things into at most three runs."""
        for a in range(num):
            for b in range(a, num):
                yield [0, a, b, num]

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=8, unique=True), st.data())
    def test_no_other_cuts_leave_less_work(self, sizes: list[int], data: st.DataObject) -> None:
        levels = np.array(sorted(sizes)) * 1000
        counts = np.array(data.draw(st.lists(st.integers(1, 50), min_size=len(levels), max_size=len(levels))))

        def work(edges: list[int]) -> int:
            runs = [(a, b) for a, b in pairwise(edges) if a < b]
            return sum(int(counts[a:b].sum()) * int(levels[b - 1]) ** 2 + clustering._BUCKET_COST for a, b in runs)

        assert work(clustering._least_work(levels, counts)) == min(map(work, self.cuts(len(levels))))

    def test_distances_fit_into_memory(self) -> None:
        sizes = np.array([5000] * 6 + [3000] * 40)
        for sets in clustering._buckets(sizes, GPU):
            assert len(sets) * sizes[sets].max() ** 2 <= 1 << 27
