"""tango.methods.holitom: HoliTom's pre-LLM part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tango.containers import PrunedTokens, VisualTokens
from tango.errors import OptionError
from tango.methods import build_pruner
from tango.methods.holitom import HolitomPruner
from tango.ops.clustering import density_peaks_counting_self
from tests.synthetic import video_tokens

VIDEOS: dict[str, dict[str, Any]] = {
    "two_scenes": {"seed": 1},
    "flicker": {"seed": 2, "flicker": 0.9, "frames": 9, "sinks": (3, 20)},
    "one_scene": {"seed": 3, "scenes": 1, "static": 0.3},
    "all_static": {"seed": 4, "scenes": 1, "static": 1.0},
    "all_dynamic": {"seed": 5, "static": 0.0},
    "wide": {"seed": 6, "grid": (3, 10), "scenes": 3, "dim": 50},
    "one_frame": {"seed": 7, "frames": 1, "scenes": 1},
}


@pytest.fixture(params=VIDEOS)
def tokens(request: pytest.FixtureRequest) -> VisualTokens:
    return video_tokens(**VIDEOS[request.param])


def made_of_scenes(static: Sequence[int], frames: int = 8, N: int = 196) -> VisualTokens:
    """Scenes whose first positions stand still, these many in each; the others turn round in every frame."""
    T = len(static) * frames
    turns = -torch.ones(T, N)
    for number, still in enumerate(static):
        turns[number * frames + 1 : (number + 1) * frames, :still] = 1
    positions = torch.stack([torch.ones(N), torch.linspace(0, 1, N)], dim=-1)
    x = turns.cumprod(0)[:, :, None] * positions
    saliency = torch.rand(T, N, generator=torch.Generator().manual_seed(0))
    return VisualTokens(features=x, grid=(1, N), timestamps_s=torch.arange(float(T)), saliency=saliency)


# --- the method written out in loops over numpy vectors, in double precision


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def oracle_windows(x: np.ndarray, tau: float) -> list[tuple[int, int, list[int]]]:
    """First and last frame of every window, and its static positions: most merged tokens, shorter last window first."""
    T, N, _ = x.shape

    def static(s: int, e: int) -> list[int]:
        return [k for k in range(N) if e > s and all(cosine(x[t, k], x[t + 1, k]) > tau for t in range(s, e))]

    gain, first = [0] * (T + 1), [0] * (T + 1)
    for e in range(T):
        gain[e + 1], first[e + 1] = gain[e], e
        for s in range(e - 1, -1, -1):
            if (found := gain[s] + (e - s) * len(static(s, e))) > gain[e + 1]:
                gain[e + 1], first[e + 1] = found, s
    windows, e = [], T
    while e > 0:
        windows.append((first[e], e - 1, static(first[e], e - 1)))
        e = first[e]
    return windows[::-1]


def oracle_centres(rows: np.ndarray, c: int, k: int) -> list[int]:
    """DPC-KNN with a row among its own k neighbours and without noise."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=-1) / math.sqrt(rows.shape[1])
    rho = [math.exp(-np.mean(np.sort(line)[:k] ** 2)) for line in distance]
    if k == 1:
        rho = [1.0] * len(rows)
    gamma = []
    for i in range(len(rows)):
        denser = [j for j in range(len(rows)) if (rho[j], -j) > (rho[i], -i)]
        gamma.append(rho[i] * (min(distance[i][j] for j in denser) if denser else distance.max()))
    return sorted(sorted(range(len(rows)), key=lambda i: (-gamma[i], i))[:c])


def oracle_merge(rows: np.ndarray, c: int, k: int, beta: float) -> tuple[list[int], list[np.ndarray]]:
    centres = oracle_centres(rows, c, min(k, c))
    members: dict[int, list[int]] = {a: [] for a in centres}
    for i in range(len(rows)):
        if i not in members:
            members[min(centres, key=lambda a: (np.linalg.norm(rows[i] - rows[a]), a))].append(i)
    return centres, [
        beta * rows[a] + (1 - beta) * np.mean([rows[i] for i in members[a]], axis=0) if members[a] else rows[a]
        for a in centres
    ]


def oracle(tokens: VisualTokens, r: float, tau: float, *, D: float = 0.0, k: int = 7, beta: float = 0.6) -> dict:
    """Kept tokens: flat index -> feature."""
    assert tokens.saliency is not None
    x, saliency = tokens.features.double().numpy(), tokens.saliency.double().numpy()
    T, N, _ = x.shape
    windows = oracle_windows(x, tau)
    saved = sum((e - s) * len(Z) for s, e, Z in windows)
    ratio = min(r / ((T * N - saved) / (T * N)), 1.0)
    kept = {}
    for s, e, Z in windows:
        if (c := round(len(Z) * ratio)) > 0:
            centres, merged = oracle_merge(x[s : e + 1, Z].mean(0), c, k, beta)
            kept.update({s * N + Z[a]: row for a, row in zip(centres, merged, strict=True)})
        others = [n for n in range(N) if n not in Z]
        for t in range(s, e + 1):
            b = math.ceil(len(others) * ratio)
            best = sorted(others, key=lambda n: (-saliency[t, n], n))
            num_salient = round(b * (1 - D))
            kept.update({t * N + n: x[t, n] for n in best[:num_salient]})
            if b > num_salient:
                rest = sorted(best[num_salient:])
                centres, merged = oracle_merge(x[t, rest], b - num_salient, k, beta)
                kept.update({t * N + rest[a]: row for a, row in zip(centres, merged, strict=True)})
    return kept


def check(pruned: PrunedTokens, expected: dict) -> None:
    assert pruned.indices.tolist() == sorted(expected)
    rows = torch.tensor(np.array([expected[i] for i in sorted(expected)]), dtype=torch.float32)
    torch.testing.assert_close(pruned.features, rows, rtol=1e-4, atol=1e-5)


class TestAgainstLoops:
    @pytest.mark.parametrize(("ratio", "tau"), [(0.06, 0.65), (0.1, 0.65), (0.2, 0.8), (0.5, 0.8)])
    def test_ratios(self, tokens: VisualTokens, ratio: float, tau: float) -> None:
        check(HolitomPruner(retention_ratio=ratio)(tokens), oracle(tokens, ratio, tau))

    @pytest.mark.parametrize("context_ratio", [0.3, 1.0])
    def test_merging_of_dynamic_tokens(self, tokens: VisualTokens, context_ratio: float) -> None:
        pruner = HolitomPruner(retention_ratio=0.3, context_ratio=context_ratio)
        check(pruner(tokens), oracle(tokens, 0.3, 0.8, D=context_ratio))

    def test_other_options(self, tokens: VisualTokens) -> None:
        pruner = HolitomPruner(retention_ratio=0.3, segment_threshold=0.5, num_neighbors=3, merge_weight=0.25)
        check(pruner(tokens), oracle(tokens, 0.3, 0.5, k=3, beta=0.25))


class TestCounts:
    @pytest.mark.parametrize(("ratio", "dynamic", "scenes"), [(0.10, 640, 638), (0.15, 960, 954), (0.20, 1280, 1269)])
    def test_at_32_frames_of_196(self, ratio: float, dynamic: int, scenes: int) -> None:
        pruner = HolitomPruner(retention_ratio=ratio)
        assert len(pruner(made_of_scenes([0] * 4)).indices) == dynamic
        assert len(pruner(made_of_scenes([108, 122, 123, 125])).indices) == scenes  # 61 % static

    @pytest.mark.parametrize(("ratio", "count"), [(0.10, 1088), (0.15, 1664), (0.20, 2176)])
    def test_at_64_frames_of_169(self, ratio: float, count: int) -> None:
        assert len(HolitomPruner(retention_ratio=ratio)(made_of_scenes([0] * 8, N=169)).indices) == count

    @pytest.mark.parametrize("ratio", [0.1, 0.15, 0.2])
    def test_exact(self, ratio: float) -> None:
        pruned = HolitomPruner(retention_ratio=ratio, exact_budget=True)(made_of_scenes([108, 122, 123, 125]))
        assert len(pruned.indices) == round(ratio * 6272)

    def test_exact_frames_differ_by_at_most_one(self) -> None:
        pruned = HolitomPruner(retention_ratio=0.15, exact_budget=True)(made_of_scenes([0] * 4))
        assert set((pruned.indices // 196).bincount(minlength=32).tolist()) == {29, 30}

    def test_exact_budget_above_what_averaging_leaves_averages_nothing(self) -> None:
        tokens = video_tokens(**VIDEOS["all_static"])
        pruned = HolitomPruner(retention_ratio=0.5, exact_budget=True)(tokens)
        assert len(pruned.indices) == 144
        assert torch.equal(pruned.features, tokens.features.flatten(0, 1)[pruned.indices])

    def test_the_static_share_may_round_to_nothing(self) -> None:
        tokens = made_of_scenes([2], frames=4, N=20)  # 2 static: 80 - 6 left, ratio .108, round(.216) = 0
        pruned = HolitomPruner()(tokens)
        assert (pruned.indices % 20 >= 2).all()
        assert len(pruned.indices) == 4 * 2
        assert pruned.assignment is not None
        assert (pruned.assignment.view(4, 20)[:, :2] == -1).all()

    def test_something_always_stays(self) -> None:
        pruned = HolitomPruner(retention_ratio=1e-6)(made_of_scenes([20], frames=4, N=20))
        assert len(pruned.indices) == 1


class TestByHand:
    def test_static_and_dynamic_tokens(self) -> None:
        """Positions 0 to 2 stand still, position 3 flips: 12 tokens less 2 * 3 saved, so half becomes all."""
        x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.2], [5.0, 5.0]]]).repeat(3, 1, 1)
        x[1, 3] *= -1
        x[2, 0] = torch.tensor([4.0, 0.0])
        tokens = VisualTokens(
            features=x, grid=(2, 2), timestamps_s=torch.arange(3.0), saliency=torch.full((3, 4), 0.25)
        )
        pruned = HolitomPruner(retention_ratio=0.5)(tokens)
        assert pruned.indices.tolist() == [0, 1, 2, 3, 7, 11]
        assert pruned.assignment is not None
        assert pruned.assignment.view(3, 4).tolist() == [[0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 5]]
        means = [[2.0, 0.0], [0.0, 1.0], [0.0, 1.2], [5.0, 5.0], [-5.0, -5.0], [5.0, 5.0]]
        torch.testing.assert_close(pruned.features, torch.tensor(means))

    def test_one_cluster_centres_on_the_lowest_position(self) -> None:
        x = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]]]).repeat(2, 1, 1)
        tokens = VisualTokens(features=x, grid=(1, 3), timestamps_s=torch.arange(2.0), saliency=torch.ones(2, 3))
        pruned = HolitomPruner(retention_ratio=0.15)(tokens)  # r' = .3, one of three
        assert pruned.indices.tolist() == [0]
        torch.testing.assert_close(pruned.features, torch.tensor([[0.6 * 1 + 0.4 * 4, 0.0]]))
        assert pruned.assignment is not None
        assert pruned.assignment.tolist() == [0] * 6

    def test_ties_of_saliency_go_to_the_lower_position(self) -> None:
        tokens = dataclasses.replace(made_of_scenes([0], frames=2, N=20), saliency=torch.full((2, 20), 0.05))
        assert HolitomPruner()(tokens).indices.tolist() == [0, 1, 20, 21]

    def test_sinks_are_not_masked(self) -> None:
        tokens = made_of_scenes([0], frames=2, N=20)
        assert tokens.saliency is not None
        tokens.saliency[:, 7] = 9.0
        pruned = HolitomPruner(retention_ratio=0.05)(dataclasses.replace(tokens, sink_positions=(7,)))
        assert pruned.indices.tolist() == [7, 27]

    def test_weight_one_leaves_dynamic_rows_and_static_means(self, tokens: VisualTokens) -> None:
        pruned = HolitomPruner(retention_ratio=0.3, merge_weight=1.0, context_ratio=0.5)(tokens)
        x = tokens.features.double().numpy()
        own = x.copy()
        for s, e, Z in oracle_windows(x, 0.8):
            own[s : e + 1, Z] = x[s : e + 1, Z].mean(0)
        expected = torch.tensor(own, dtype=torch.float32).flatten(0, 1)[pruned.indices]
        torch.testing.assert_close(pruned.features, expected)

    def test_max_segment_frames(self) -> None:
        tokens = video_tokens(**VIDEOS["all_static"])
        pruned = HolitomPruner(max_segment_frames=3)(tokens)
        starts = sorted({index // 36 for index in pruned.indices.tolist()})
        assert all(b - a <= 3 for a, b in pairwise([*starts, 8]))


class TestCentres:
    @pytest.mark.parametrize("c", [2, 3, 9])
    @pytest.mark.parametrize("k", [2, 4, 20])
    def test_against_loops(self, c: int, k: int) -> None:
        rows = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(c * k))
        centres, _ = density_peaks_counting_self(rows, c, k=k)
        for found, one in zip(centres, rows.double().numpy(), strict=True):
            assert sorted(found.tolist()) == oracle_centres(one, c, min(k, 9))

    def test_one_neighbour_is_no_neighbour(self) -> None:
        rows = torch.randn(1, 4, 3)
        centres, nearest = density_peaks_counting_self(rows, 1, k=1)
        assert centres.tolist() == [[0]]
        assert nearest.tolist() == [[0] * 4]
        with pytest.raises(ValueError, match="k must be at least 2"):
            density_peaks_counting_self(rows, 2, k=1)


class TestConfiguration:
    @pytest.mark.parametrize(("ratio", "threshold"), [(0.05, 0.65), (0.1, 0.65), (0.11, 0.8), (0.5, 0.8)])
    def test_threshold_follows_the_ratio(self, ratio: float, threshold: float) -> None:
        assert HolitomPruner(retention_ratio=ratio).resolved_segment_threshold == threshold
        assert HolitomPruner(retention_ratio=ratio, segment_threshold=0.7).resolved_segment_threshold == 0.7

    def test_threshold_goes_by_the_mean_over_layers(self) -> None:
        inside = build_pruner("holitom", retention_ratio=0.3).for_mean(0.1, 28)
        assert inside.config()["segment_threshold"] == 0.65

    @pytest.mark.usefixtures("unchecked_annotations")
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("segment_threshold", 65),
            ("context_ratio", 1.5),
            ("merge_weight", -0.1),
            ("num_neighbors", 1),
            ("max_segment_frames", 0),
            ("merge_weight", math.nan),
        ],
    )
    def test_options_out_of_range_are_refused(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError, match=f"^{option} must lie in .* got {value!r}"):
            build_pruner("holitom", **{option: value})

    @pytest.mark.parametrize("where", ["features", "saliency"])
    @pytest.mark.parametrize("frames", [1, 4])
    def test_broken_values_are_refused(self, where: str, frames: int) -> None:
        tokens = video_tokens(frames=frames, scenes=1)
        getattr(tokens, where)[-1, 5] = torch.nan
        with pytest.raises(ValueError, match="contain NaN or infinity"):
            HolitomPruner()(tokens)
