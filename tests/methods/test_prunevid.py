"""tango.methods.prunevid: PruneVid's pre-LLM part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tango.containers import PrunedTokens, VisualTokens
from tango.errors import OptionError
from tango.methods import build_pruner
from tango.methods.prunevid import PruneVidPruner
from tests.synthetic import video_tokens

VIDEOS: dict[str, dict[str, Any]] = {
    "two_scenes": {"seed": 1, "frames": 16},
    "flicker": {"seed": 2, "flicker": 0.9, "frames": 13},
    "one_scene": {"seed": 3, "scenes": 1, "static": 0.3},
    "all_static": {"seed": 4, "scenes": 1, "static": 1.0},
    "all_dynamic": {"seed": 5, "static": 0.0},
    "wide": {"seed": 6, "grid": (3, 10), "frames": 12, "scenes": 3, "dim": 50},
    "few_tokens": {"seed": 9, "grid": (3, 4), "frames": 12},
    "three_frames": {"seed": 8, "frames": 3},
    "one_frame": {"seed": 7, "frames": 1, "scenes": 1},
}


@pytest.fixture(params=VIDEOS)
def tokens(request: pytest.FixtureRequest) -> VisualTokens:
    return video_tokens(**VIDEOS[request.param])


def video(x: Tensor) -> VisualTokens:
    return VisualTokens(features=x, grid=(1, x.shape[1]), timestamps_s=torch.arange(float(len(x))))


def made_of_scenes(static: Sequence[int], frames: int = 8, N: int = 196) -> VisualTokens:
    """Scenes whose first positions, this many, are static and all different; the others turn round in every frame."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(len(static), 1, N, len(static) + 8, generator=g).repeat(1, frames, 1, 1)
    for number, (scene, still) in enumerate(zip(x, static, strict=True)):
        scene[:, :still, number] += 20
        scene[1::2, still:] *= -1
    return video(x.flatten(0, 1))


# --- the method written out in loops over numpy vectors, in double precision


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def oracle_clusters(rows: np.ndarray, c: int, k: int) -> dict[int, list[int]]:
    """DPC-KNN with a row among its own k neighbours and without noise: members of every centre."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=-1) / math.sqrt(rows.shape[1])
    rho = [math.exp(-np.mean(np.sort(line)[:k] ** 2)) for line in distance]
    gamma = []
    for i in range(len(rows)):
        denser = [j for j in range(len(rows)) if (rho[j], -j) > (rho[i], -i)]
        gamma.append(rho[i] * (min(distance[i][j] for j in denser) if denser else distance.max()))
    centres = sorted(sorted(range(len(rows)), key=lambda i: (-gamma[i], i))[:c])
    members: dict[int, list[int]] = {a: [a] for a in centres}
    for i in range(len(rows)):
        if i not in centres:
            members[min(centres, key=lambda a: (distance[i][a], a))].append(i)
    return members


def oracle_segments(means: np.ndarray, share: float, k: int) -> list[list[int]]:
    T = len(means)
    label = [-1] * T
    for centre, members in oracle_clusters(means, max(1, int(share * T)), k).items():
        for t in members:
            label[t] = centre

    def run(t: int, labels: list[int]) -> tuple[int, int]:
        first = last = t
        while first > 0 and labels[first - 1] == labels[t]:
            first -= 1
        while last < T - 1 and labels[last + 1] == labels[t]:
            last += 1
        return first, last

    def length(t: int, labels: list[int]) -> int:
        if not 0 <= t < T:
            return 0
        first, last = run(t, labels)
        return last - first + 1

    best = {c: max(length(t, label) for t in range(T) if label[t] == c) for c in label}
    mended = [c if length(t, label) == best[c] and best[c] > 1 else -1 for t, c in enumerate(label)]
    while -1 in mended and set(mended) != {-1}:
        first, last = run(mended.index(-1), mended)
        left, right = length(first - 1, mended), length(last + 1, mended)
        mended[first : last + 1] = [mended[first - 1] if left >= right else mended[last + 1]] * (last - first + 1)
    segments: list[list[int]] = []
    for t in range(T):
        if t == 0 or mended[t] != mended[t - 1]:
            segments.append([])
        segments[-1].append(t)
    return segments


def oracle_sets(x: np.ndarray, share: float, tau: float, k: int) -> list[tuple[list[int], np.ndarray]]:
    """Flat indices and rows of every static set, and of what is dynamic in every frame."""
    N, sets = x.shape[1], []
    for frames in oracle_segments(x.mean(1), share, k):
        still = []
        for n in range(N):
            pairs = [cosine(x[s, n], x[t, n]) for s in frames for t in frames if s != t]
            if pairs and np.mean(pairs) > tau:
                still.append(n)
        sets.append(([frames[0] * N + n for n in still], x[frames][:, still].mean(0)))
        rest = [n for n in range(N) if n not in still]
        sets += [([t * N + n for n in rest], x[t, rest]) for t in frames]
    return sets


def oracle_merge(
    sets: list[tuple[list[int], np.ndarray]], counts: Sequence[int], k: int
) -> tuple[dict[int, np.ndarray], dict[int, int]]:
    """Kept tokens, flat index -> feature; and what stands for each token that is in a set."""
    kept, stands_for = {}, {}
    for (ids, rows), count in zip(sets, counts, strict=True):
        clusters = oracle_clusters(rows, count, k) if count else {}
        for centre, members in clusters.items():
            kept[ids[centre]] = rows[members].mean(0)
            stands_for.update({ids[i]: ids[centre] for i in members})
    return kept, stands_for


def check(pruned: PrunedTokens, kept: dict[int, np.ndarray], stands_for: dict[int, int]) -> None:
    assert pruned.indices.tolist() == sorted(kept)
    rows = torch.tensor(np.array([kept[i] for i in sorted(kept)]), dtype=torch.float32)
    torch.testing.assert_close(pruned.features, rows, rtol=1e-4, atol=1e-5)
    assert pruned.assignment is not None
    for token, centre in stands_for.items():
        assert pruned.indices[pruned.assignment[token]] == centre


class TestAgainstLoops:
    @pytest.mark.parametrize("c", [0.5, 0.2, 1.0])
    def test_given_cluster_ratio(self, tokens: VisualTokens, c: float) -> None:
        sets = oracle_sets(tokens.features.double().numpy(), 0.25, 0.8, 7)
        counts = [len(ids) if len(ids) <= 14 else int(c * len(ids)) for ids, _ in sets]
        check(PruneVidPruner(cluster_ratio=c)(tokens), *oracle_merge(sets, counts, 7))

    @pytest.mark.parametrize(
        ("options", "letters"),
        [
            ({"segment_ratio": 0.5, "static_threshold": 0.5}, (0.5, 0.5, 7)),
            ({"segment_ratio": 0.0, "static_threshold": 0.9}, (0.0, 0.9, 7)),
            ({"segment_ratio": 1.0, "num_neighbors": 3}, (1.0, 0.8, 3)),
        ],
        ids=str,
    )
    def test_options(self, tokens: VisualTokens, options: dict[str, Any], letters: tuple[float, float, int]) -> None:
        sets = oracle_sets(tokens.features.double().numpy(), *letters)
        counts = [len(ids) and max(1, int(0.4 * len(ids))) for ids, _ in sets]
        pruner = PruneVidPruner(cluster_ratio=0.4, max_unmerged=0, **options)
        check(pruner(tokens), *oracle_merge(sets, counts, letters[2]))

    @pytest.mark.parametrize("ratio", [0.05, 0.1, 0.3])
    def test_solved_cluster_ratio(self, tokens: VisualTokens, ratio: float) -> None:
        """One share of every set; largest remainders round up."""
        sets = oracle_sets(tokens.features.double().numpy(), 0.25, 0.8, 7)
        sizes = [len(ids) for ids, _ in sets]
        total = min(round(ratio * tokens.features[..., 0].numel()), sum(sizes))
        counts = [size * total // sum(sizes) for size in sizes]
        by_remainder = sorted(range(len(sizes)), key=lambda i: (-(sizes[i] * total % sum(sizes)), i))
        for i in by_remainder[: total - sum(counts)]:
            counts[i] += 1
        check(PruneVidPruner(retention_ratio=ratio)(tokens), *oracle_merge(sets, counts, 7))


class TestCounts:
    @pytest.mark.parametrize(("ratio", "count"), [(0.10, 627), (0.15, 941), (0.20, 1254)])
    @pytest.mark.parametrize("exact_budget", [False, True])
    def test_solved_at_32_frames_of_196(self, ratio: float, count: int, exact_budget: bool) -> None:
        pruner = PruneVidPruner(retention_ratio=ratio, exact_budget=exact_budget, segment_ratio=0.125)
        for static in ([0] * 4, [108, 122, 123, 125]):
            assert len(pruner(made_of_scenes(static)).indices) == count

    def test_of_the_paper_at_32_frames_of_196(self) -> None:
        pruner = PruneVidPruner(cluster_ratio=0.5, segment_ratio=0.125)  # four segments
        assert len(pruner(made_of_scenes([0] * 4)).indices) == 32 * 98
        static = [108, 122, 183, 196]  # 88, 74, 13 and no dynamic tokens per frame; 13 are not clustered
        assert len(pruner(made_of_scenes(static)).indices) == 54 + 61 + 91 + 98 + 8 * (44 + 37 + 13)

    @pytest.mark.parametrize(("exact_budget", "count"), [(False, 196), (True, 627)])
    def test_more_asked_for_than_averaging_leaves(self, exact_budget: bool, count: int) -> None:
        tokens = video(torch.randn(1, 196, 6, generator=torch.Generator().manual_seed(0)).expand(32, -1, -1))
        pruned = PruneVidPruner(exact_budget=exact_budget)(tokens)
        assert len(pruned.indices) == count
        if exact_budget:
            assert (pruned.indices // 196).unique().tolist() == list(range(32))
        else:
            torch.testing.assert_close(pruned.features, tokens.features[0])

    @pytest.mark.parametrize("T", range(1, 9))
    def test_few_frames(self, T: int) -> None:
        tokens = video(torch.randn(T, 20, 6, generator=torch.Generator().manual_seed(T)))
        assert len(PruneVidPruner(retention_ratio=0.25)(tokens).indices) == 5 * T
        assert len(PruneVidPruner(cluster_ratio=0.5)(tokens).indices) == 10 * T

    @pytest.mark.parametrize(("size", "kept"), [(1, 1), (14, 14), (15, 7), (16, 8)])
    def test_fourteen_tokens_are_not_clustered(self, size: int, kept: int) -> None:
        tokens = video(torch.randn(1, size, 6, generator=torch.Generator().manual_seed(size)))
        assert len(PruneVidPruner(cluster_ratio=0.5)(tokens).indices) == kept


class TestByHand:
    def test_static_and_dynamic_tokens(self) -> None:
        """Positions 0 and 1 are static up to length and merge; positions 2 and 3 are not, and merge in each frame."""
        a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        x = torch.stack([torch.stack([a, 2 * a, 9 * b, 8 * b]), torch.stack([3 * a, 4 * a, -9 * b, -8 * b])])
        pruned = PruneVidPruner(cluster_ratio=0.5, max_unmerged=0)(video(x))
        assert pruned.indices.tolist() == [0, 2, 6]
        torch.testing.assert_close(pruned.features, torch.stack([2.5 * a, 8.5 * b, -8.5 * b]))
        assert pruned.assignment is not None
        assert pruned.assignment.tolist() == [0, 0, 1, 1, 0, 0, 2, 2]

    @pytest.mark.parametrize(("frames", "static"), [(2, False), (3, False), (4, True)])
    def test_the_mean_over_all_pairs_decides(self, frames: int, static: bool) -> None:
        """One frame at 60 degrees from the others: mean cosine 1/2, 2/3 and 3/4 at 2, 3 and 4 frames."""
        x = torch.tensor([[[1.0, 0.0]]]).repeat(frames, 1, 1)
        x[-1, 0] = torch.tensor([0.5, 0.75**0.5])
        pruned = PruneVidPruner(cluster_ratio=1.0, segment_ratio=0.0, static_threshold=0.7)(video(x))
        assert len(pruned.indices) == (1 if static else frames)

    def test_one_frame_has_no_static_tokens(self) -> None:
        tokens = video(torch.ones(1, 4, 3))
        assert PruneVidPruner(cluster_ratio=0.5, static_threshold=-1.0)(tokens).indices.tolist() == [0, 1, 2, 3]

    def test_black_frames_are_not_static(self) -> None:
        pruned = PruneVidPruner(retention_ratio=0.5)(video(torch.zeros(4, 6, 3)))
        assert (pruned.indices // 6).bincount().tolist() == [3] * 4

    @pytest.mark.parametrize("size", [1, 5])
    def test_blocks_change_nothing(
        self, tokens: VisualTokens, cut_into_blocks: Callable[[int], None], size: int
    ) -> None:
        whole = PruneVidPruner(retention_ratio=0.2)(tokens)
        cut_into_blocks(size)
        parts = PruneVidPruner(retention_ratio=0.2)(tokens)
        assert torch.equal(parts.indices, whole.indices)
        torch.testing.assert_close(parts.features, whole.features)


@pytest.mark.usefixtures("unchecked_annotations")
class TestConfiguration:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("cluster_ratio", 50),
            ("cluster_ratio", math.nan),
            ("max_unmerged", -1),
            ("segment_ratio", 1.5),
            ("static_threshold", 80),
            ("num_neighbors", 1),
        ],
    )
    def test_options_out_of_range_are_refused(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError, match=f"^{option} must lie in .* got {value!r}"):
            build_pruner("prunevid", **{option: value})

    def test_two_ways_to_set_the_number_of_tokens_are_refused(self) -> None:
        with pytest.raises(OptionError, match="cluster_ratio sets the number of tokens, and so does exact_budget"):
            build_pruner("prunevid", cluster_ratio=0.5, exact_budget=True)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("frames", [1, 4])
    def test_broken_features_are_refused(self, value: float, frames: int) -> None:
        tokens = video_tokens(frames=frames, scenes=1)
        tokens.features[-1, 5, 2] = value
        with pytest.raises(ValueError, match="features contain NaN or infinity"):
            PruneVidPruner()(tokens)
