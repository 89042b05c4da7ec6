"""V-CAST against its authors' numbers, and against plain loops. Files: tests/data/golden-v-cast/README.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.containers import VisualTokens
from tango.errors import NotFiniteError, OptionError
from tango.methods import VCastPruner
from tango.methods.v_cast import Leftover, allot
from tests.synthetic import video_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden-v-cast"
FILES = ("vc01_scene", "vc02_iid_6x9", "vc03_scene_still", "vc04_T2", "vc05_min_k")


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def kept(features: Tensor, ratio: float, **options: Any) -> list[int]:
    T, N, _ = features.shape
    tokens = VisualTokens(features=features, grid=(1, N), timestamps_s=torch.arange(T) / 1.0)
    pruned = VCastPruner(retention_ratio=ratio, **options)(tokens)
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])
    return pruned.indices.tolist()


def per_frame(features: Tensor, ratio: float, **options: Any) -> list[int]:
    T, N, _ = features.shape
    return (torch.tensor(kept(features, ratio, **options)) // N).bincount(minlength=T).tolist()


def unit(rows: NDArray) -> NDArray:
    return rows / max(float(np.linalg.norm(rows)), 1e-6)


def turns_of(x: NDArray) -> list[float]:
    """The curvature at every frame, by its definition."""
    means = [unit(frame.mean(0)) for frame in x]
    turns = [1.0] * len(x)
    for t in range(1, len(x) - 1):
        before, after = means[t] - means[t - 1], means[t + 1] - means[t]
        turns[t] = 1 - float(unit(before) @ unit(after))
    return turns


def oracle(features: Tensor, ratio: float, *, temperature: float = 0.7, least: int = 1) -> list[int]:
    """The method as it is written down, token by token, with the release's rule for what rounding leaves."""
    x = features.double().numpy()
    T, N, _ = x.shape
    total = max(min(max(round(ratio * T * N), 1), T * N), T * least)
    weights = [math.exp(turn / temperature) for turn in turns_of(x)]
    shares = [(total - T * least) * weight / sum(weights) for weight in weights]
    counts = [least + min(math.floor(share + 1e-6), N - least) for share in shares]
    order = sorted(range(T), key=lambda t: (math.floor(shares[t] + 1e-6) - shares[t], t))
    for t in order:
        counts[t] += min(N - counts[t], total - sum(counts))
    found = []
    for t in range(T):
        mean, norms = unit(x[t].mean(0)), [float(np.linalg.norm(row)) for row in x[t]]
        scores = []
        for row, norm in zip(x[t], norms, strict=True):
            long = (norm - min(norms)) / (max(norms) - min(norms) + 1e-6)
            scores.append(1 - float(unit(row) @ mean) + long)
        best = sorted(range(N), key=lambda n: (-scores[n], n))[: counts[t]]
        found += [t * N + n for n in sorted(best)]
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_tokens_are_those_of_the_release(name: str) -> None:
    case = load(name)
    features = torch.from_numpy(case["features"]).float()
    np.testing.assert_allclose(turns_of(features.double().numpy()), case["curvature"], atol=1e-4)
    own = {"min_tokens": int(case["min_k"]), "temperature": float(case["budget_temperature"])}
    for ratio in case["rs"].tolist():
        assert per_frame(features, ratio, **own) == case[f"r{ratio}_per_frame"].tolist()
        assert kept(features, ratio, **own) == case[f"r{ratio}_indices"].tolist()


def test_the_allocation_is_that_of_the_release() -> None:
    case = load("vc06_allocation")
    for j in range(int(case["n"])):
        weights, total, least, most, counts = (
            case[f"a{j}_{name}"].tolist() for name in ("weights", "total", "min_k", "max_k", "counts")
        )
        assert allot(weights, total, least=least, most=most, leftover="release") == counts, j


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.37, 0.8])
def test_against_plain_loops(seed: int, ratio: float) -> None:
    features = video_tokens(seed, frames=3 + 2 * seed, grid=(4, 5), dim=24, scenes=1 + seed % 3).features
    assert kept(features, ratio) == oracle(features, ratio)
    other = {"temperature": 0.3, "min_tokens": 3}
    assert kept(features, ratio, **other) == oracle(features, ratio, temperature=0.3, least=3)


@pytest.mark.parametrize("leftover", ["release", "spread"])
def test_a_thousand_allocations_add_up(leftover: Leftover) -> None:
    random = np.random.default_rng(0)
    for _ in range(1000):
        T, N = int(random.integers(1, 40)), int(random.integers(1, 60))
        weights = random.dirichlet(np.full(T, float(random.choice([0.1, 1.0, 10.0]))))
        total, least = int(random.integers(1, T * N + 1)), int(random.integers(0, N + 1))
        counts = allot(weights.tolist(), total, least=least, most=N, leftover=leftover)
        assert sum(counts) == total
        assert all((least if total >= T * least else 0) <= count <= N for count in counts)


def test_what_rounding_leaves() -> None:
    """Shares 2.5, 2.7, 2.1 and 2.7, of 10: the second and the fourth have the largest fractions."""
    weights = [0.25, 0.27, 0.21, 0.27]
    assert allot(weights, 10, least=0, most=9, leftover="release") == [2, 4, 2, 2]
    assert allot(weights, 10, least=0, most=9, leftover="spread") == [2, 3, 2, 3]
    assert allot(weights, 10, least=0, most=3, leftover="release") == [2, 3, 2, 3]
    # Of shares 6.4, 1.04 and 0.56 the first frame takes 4; 3 are left, and the third has the largest fraction.
    assert allot([0.8, 0.13, 0.07], 8, least=0, most=4, leftover="release") == [4, 1, 3]
    assert allot([0.8, 0.13, 0.07], 8, least=0, most=4, leftover="spread") == [4, 2, 2]


def test_equal_weights_lose_nothing_to_rounding() -> None:
    """A third is no binary number; three thirds of 60 must still be 20 each."""
    for T in range(1, 50):
        counts = allot(torch.ones(T).double().softmax(0).tolist(), 20 * T, least=1, most=40, leftover="release")
        assert counts == [20] * T


def test_still_frames_share_alike() -> None:
    features = torch.randn(1, 20, 16, generator=torch.Generator().manual_seed(0)).expand(7, -1, -1)
    assert per_frame(features, 0.35) == [7] * 7


def test_two_frames_share_alike_and_one_is_pruned_like_any_other() -> None:
    features = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    assert per_frame(features, 0.3) == [6, 6]
    assert per_frame(features[:1], 0.3) == [6]


def test_a_turn_gets_more_than_a_straight_way() -> None:
    """Frame means move along a line and come back: the turn is in the middle."""
    g = torch.Generator().manual_seed(0)
    base, step = torch.randn(12, generator=g), torch.randn(12, generator=g)
    noise = torch.randn(20, 12, generator=g)
    way = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.2, 0.1, 0.0])
    features = base + way[:, None, None] * step + (noise - noise.mean(0))
    counts = per_frame(features, 0.4)
    assert max(counts) == counts[3]
    assert max(counts[1], counts[2], counts[4], counts[5]) < min(counts[0], counts[3], counts[6])


def test_few_tokens() -> None:
    features = video_tokens(1, frames=8, grid=(3, 4), dim=16).features
    assert per_frame(features, 0.02) == [1] * 8  # the budget is raised
    assert sum(per_frame(features, 0.02, exact_budget=True)) == 2
    assert min(per_frame(features, 0.3, exact_budget=True)) >= 1
    assert per_frame(features, 0.02, min_tokens=100) == [12] * 8
    assert sum(per_frame(features, 0.02, min_tokens=0)) == 2


def test_a_common_factor_changes_nothing() -> None:
    features = video_tokens(2, frames=8, grid=(4, 4), dim=16).features
    assert kept(features * 32, 0.3) == kept(features, 0.3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_as_its_own_values_in_float32(dtype: torch.dtype) -> None:
    features = video_tokens(4, frames=6, grid=(4, 4), dim=32).features.to(dtype)
    assert kept(features, 0.4) == oracle(features.float(), 0.4)


def test_long_videos_are_scored_piece_by_piece(cut_into_blocks: Callable[[int], None]) -> None:
    features = video_tokens(5, frames=9, grid=(3, 4), dim=16).features
    whole = kept(features, 0.4)
    cut_into_blocks(2)
    assert kept(features, 0.4) == whole


@pytest.mark.parametrize("frame", [0, 2, 3])
def test_values_that_are_not_finite_are_refused(frame: int) -> None:
    features = torch.ones(4, 5, 8)
    features[frame, 3, 1] = torch.inf
    with pytest.raises(NotFiniteError, match="features contain NaN"):
        kept(features, 0.5)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": math.inf}, {"min_tokens": -1},
                                     {"leftover": "rest"}], ids=str)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        VCastPruner(**options)
