"""tango.batched.selection: top-k among tokens that differ, in many sets at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tango.batched import selection
from tango.batched.clustering import runs
from tango.ops.clustering import TICK_LENGTH, dpc_knn
from tango.ops.selection import top_k


def scores_and_rows(B: int, N: int, D: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(B, N, generator=g), F.normalize(torch.randn(B, N, D, generator=g), dim=-1)


def diverse_top_k(scores: Tensor, x: Tensor, k: int, **options: Any) -> Tensor:
    """The function under test, of sets of one size."""
    B, N = scores.shape
    chosen = selection.diverse_top_k(
        scores.flatten(),
        np.full(B, N),
        np.full(B, k),
        lambda ids: F.normalize(x.flatten(0, 1)[ids], dim=-1) / TICK_LENGTH,
        **options,
    )
    return chosen.sort().values.view(B, k) - N * torch.arange(B)[:, None]


def diverse_top_k_by_loops(scores: Tensor, x: Tensor, k: int, alpha: float) -> list[int]:
    """Eq. 5 for one set: candidates, their clusters, and the best of each cluster."""
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    candidates = ranking[: min(int(alpha * k), len(scores))]
    if len(candidates) <= k:
        return candidates
    centres = [candidates[c] for c in dpc_knn(x[candidates], k)[0].tolist()]
    best: dict[int, int] = {}
    for candidate in candidates:  # best first
        own = candidate if candidate in centres else min(centres, key=lambda c: (x[c] - x[candidate]).norm().item())
        best.setdefault(own, candidate)
    return list(best.values())


class TestDiverseTopK:
    def test_takes_one_of_two_alike_and_a_lesser_one_that_differs(self) -> None:
        x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.999, 0.04], [-1.0, 0.0]]])
        scores = torch.tensor([[0.8, 0.5, 0.9, 0.1]])
        assert top_k(scores, 2).tolist() == [[2, 0]]
        assert sorted(diverse_top_k(scores, x, 2)[0].tolist()) == [1, 2]  # of the alike, the better

    def test_tokens_that_are_no_candidates_never_win_by_difference(self) -> None:
        x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
        scores = torch.tensor([[0.9, 0.8, 0.7, 0.1]])
        assert sorted(diverse_top_k(scores, x, 2)[0].tolist()) == [0, 1]

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize(("N", "k", "alpha"), [(20, 6, 1.5), (20, 6, 3.0), (30, 9, 1.2), (8, 7, 2.0), (12, 1, 5.0)])
    def test_equals_loops(self, N: int, k: int, alpha: float, seed: int) -> None:
        scores, x = scores_and_rows(3, N, seed=seed)
        chosen = diverse_top_k(scores, x, k, alpha=alpha)
        expected = [sorted(diverse_top_k_by_loops(s, rows, k, alpha)) for s, rows in zip(scores, x, strict=True)]
        assert chosen.sort().values.tolist() == expected

    @given(st.integers(0, 15), st.sampled_from([1.0, 1.1, 1.5, 2.0, 9.0]), st.integers(1, 4), st.booleans())
    def test_keeps_k_different_candidates(self, k: int, alpha: float, levels: int, alike: bool) -> None:
        scores, x = scores_and_rows(2, 15)
        scores = (scores * levels).floor()  # many equal scores
        x = x[:, :1].expand_as(x) if alike else x
        chosen = diverse_top_k(scores, x, k, alpha=alpha)
        candidates = top_k(scores, min(int(alpha * k), 15))
        assert chosen.shape == (2, k)
        for row, pool in zip(chosen.tolist(), candidates.tolist(), strict=True):
            assert len(set(row)) == k
            assert set(row) <= set(pool)

    def test_the_highest_score_is_always_kept(self) -> None:
        scores, x = scores_and_rows(40, 25)
        chosen = diverse_top_k(scores, x, 5)
        assert (chosen == scores.argmax(-1, keepdim=True)).any(-1).all()

    def test_alpha_one_is_a_plain_top_k(self) -> None:
        scores, x = scores_and_rows(3, 20)
        assert torch.equal(diverse_top_k(scores, x, 6, alpha=1.0), top_k(scores, 6).sort().values)

    def test_number_of_candidates_is_rounded_down(self) -> None:
        scores, x = scores_and_rows(3, 20)
        assert torch.equal(diverse_top_k(scores, x, 1, alpha=1.9), top_k(scores, 1))

    def test_number_of_neighbors_is_passed_on(self) -> None:
        scores, x = scores_and_rows(30, 40)
        few, many = (diverse_top_k(scores, x, 10, num_neighbors=n).sort().values for n in (1, 12))
        assert not torch.equal(few, many)

    def test_sets_do_not_influence_each_other(self) -> None:
        scores, x = scores_and_rows(4, 20)
        together = diverse_top_k(scores, x, 6)
        for b in range(4):
            assert torch.equal(together[b], diverse_top_k(scores[b : b + 1], x[b : b + 1], 6)[0])

    def test_sets_of_different_sizes_and_counts(self) -> None:
        sizes, counts = [20, 7, 1, 30, 7, 5], [6, 3, 1, 4, 0, 5]
        scores, x = scores_and_rows(1, sum(sizes))
        chosen = selection.diverse_top_k(
            scores[0], np.array(sizes), np.array(counts), lambda ids: x[0, ids] / TICK_LENGTH
        )
        expected, start = [], 0
        for size, count in zip(sizes, counts, strict=True):
            own = slice(start, start + size)
            expected += (diverse_top_k(scores[:, own], x[:, own], count)[0] + start).tolist()
            start += size
        assert chosen.sort().values.tolist() == expected

    def test_equal_scores_and_equal_rows_keep_the_lowest_positions(self) -> None:
        assert sorted(diverse_top_k(torch.ones(1, 9), torch.ones(1, 9, 4), 4)[0].tolist()) == [0, 1, 2, 3]

    def test_leaves_its_input_alone(self) -> None:
        scores, x = scores_and_rows(2, 20)
        before = scores.clone(), x.clone()
        diverse_top_k(scores, x, 6)
        assert torch.equal(scores, before[0])
        assert torch.equal(x, before[1])

    @pytest.mark.parametrize("alpha", [0.99, 0.0, -2.0])
    def test_alpha_below_one_is_refused(self, alpha: float) -> None:
        with pytest.raises(ValueError, match=f"alpha must be at least 1, got {alpha}"):
            diverse_top_k(*scores_and_rows(1, 5), 2, alpha=alpha)

    @pytest.mark.parametrize("k", [-1, 6])
    def test_counts_out_of_range_are_refused(self, k: int) -> None:
        with pytest.raises(ValueError, match=rf"counts must lie in 0\.\.5 .*, got {k}"):
            diverse_top_k(*scores_and_rows(1, 5), k)


def test_runs() -> None:
    assert runs(np.array([5, 0, 9, 1]), np.array([2, 3, 0, 1])).tolist() == [5, 6, 0, 1, 2, 1]
    assert runs(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []
