"""EVS against the functions in use elsewhere, and against plain loops. Files: tests/data/golden-evs/README.md."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.containers import VisualTokens
from tango.errors import NotFiniteError
from tango.methods import EvsPruner
from tests.synthetic import video_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden-evs"
FILES = ("ev01_scene", "ev02_iid_7x9", "ev03_trunc", "ev04_T1")
FALLS_SHORT = ("ev03_trunc", 0.8)  # 640 * (1 - 0.8) is 127.99999999999997 in double precision


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def tokens_of(features: Tensor, grid: tuple[int, int] | None = None) -> VisualTokens:
    T, N, _ = features.shape
    return VisualTokens(features=features, grid=grid or (1, N), timestamps_s=torch.arange(T) / 1.0)


def kept(features: Tensor, ratio: float, *, exact_budget: bool = False) -> list[int]:
    pruned = EvsPruner(retention_ratio=ratio, exact_budget=exact_budget)(tokens_of(features))
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.indices])
    return pruned.indices.tolist()


def oracle(features: Tensor, ratio: float) -> list[int]:
    """The method as it is written down, token by token."""
    T, N, _ = features.shape
    x = features.double()
    changed = {}
    for t in range(1, T):
        for n in range(N):
            lengths = float(x[t, n].norm() * x[t - 1, n].norm())
            changed[t * N + n] = 1 - float(x[t, n] @ x[t - 1, n]) / lengths
    room = max(0, math.floor(ratio * T * N + 1e-6) - N)
    most = sorted(changed, key=lambda i: (-round(changed[i] * 2**18), i))[:room]
    return [*range(N), *sorted(most)]


@pytest.mark.parametrize("name", FILES)
def test_the_tokens_are_those_of_transformers(name: str) -> None:
    case = load(name)
    features = torch.from_numpy(case["features"]).float()
    for q in case["qs"].tolist():
        found, expected = kept(features, 1 - q), case[f"q{q}_indices"].tolist()
        assert len(expected) == int(case[f"q{q}_count"])
        if (name, q) == FALLS_SHORT:
            assert (len(found), len(expected)) == (128, 127)
            assert set(expected) < set(found)
        else:
            assert found == expected


@pytest.fixture(scope="module")
def retention_mask() -> Callable[[Tensor, int, float], Tensor]:
    module = pytest.importorskip(
        "transformers.models.nemotron_h_omni.modeling_nemotron_h_omni",
        reason="this transformers release has no EVS (one between 5.17 and 5.20 brought it)",
    )
    stock = module.compute_retention_mask
    if "thw" not in inspect.signature(stock).parameters:
        return stock

    def with_grid(features: Tensor, T: int, q: float) -> Tensor:  # as up to 5.20 at least: the frames' height and width
        thw = torch.tensor([T, 1, len(features) // T])
        return stock(video_embeds=features, thw=thw, spatial_merge_size=1, q=q).flatten()

    return with_grid


@pytest.mark.parametrize("q", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("shape", [(9, 7, 24), (12, 35, 40), (1, 20, 16), (2, 13, 8)])
def test_the_installed_transformers_agrees(
    retention_mask: Callable[[Tensor, int, float], Tensor], shape: tuple[int, int, int], q: float
) -> None:
    T, N, D = shape
    features = torch.randn(shape, generator=torch.Generator().manual_seed(T))
    mask = retention_mask(features.reshape(T * N, D), T, q)
    found, theirs = kept(features, 1 - q), mask.nonzero()[:, 0].tolist()
    short = max(N, math.floor(T * N * (1 - q) + 1e-6)) - len(theirs)  # where their product falls short of a number
    assert len(found) == len(theirs) + short
    assert 0 <= short <= 1
    assert (found == theirs) if not short else set(theirs) < set(found)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.05, 0.13, 0.3, 0.75, 0.99])
def test_against_plain_loops(seed: int, ratio: float) -> None:
    tokens = video_tokens(seed, frames=7, grid=(4, 5), dim=24, scenes=1 + seed % 3)
    assert kept(tokens.features, ratio) == oracle(tokens.features, ratio)


@pytest.mark.parametrize("ratio", [0.01, 0.4, 0.9])
def test_a_single_frame_stays_whole(ratio: float) -> None:
    features = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    assert kept(features, ratio) == list(range(12))


def test_below_one_frame_the_first_frame_stays_unless_the_budget_is_exact() -> None:
    features = torch.randn(10, 12, 8, generator=torch.Generator().manual_seed(0))
    assert kept(features, 0.03) == list(range(12))
    assert kept(features, 0.05, exact_budget=True) == [1, 3, 5, 7, 9, 11]
    assert kept(features, 0.001, exact_budget=True) == [6]
    assert len(kept(features, 0.2124, exact_budget=True)) == 25
    assert len(kept(features, 0.2124)) == 25  # floor of 25.488
    assert len(kept(features, 0.2126, exact_budget=True)) == 26
    assert len(kept(features, 0.2126)) == 25


def test_repeated_frames_keep_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 16, 24, generator=generator)
    features[[1, 2, 4]] = features[[0, 0, 3]]
    frames = torch.tensor(kept(features, 3 / 6)) // 16
    assert frames.bincount(minlength=6).tolist() == [16, 0, 0, 16, 0, 16]


def test_ties_go_to_the_earlier_token() -> None:
    features = torch.ones(4, 5, 8)
    assert kept(features, 0.4) == list(range(8))


def test_the_order_and_the_scale_of_channels_change_nothing() -> None:
    features = video_tokens(3, frames=6, grid=(4, 4), dim=32).features
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    assert kept(features[..., order], 0.4) == kept(features, 0.4)
    assert kept(features * 64, 0.4) == kept(features, 0.4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_decides_as_its_own_values_in_float32(dtype: torch.dtype) -> None:
    features = video_tokens(4, frames=6, grid=(4, 4), dim=32).features.to(dtype)
    assert kept(features, 0.4) == oracle(features.float(), 0.4)


def test_long_videos_are_compared_piece_by_piece(cut_into_blocks: Callable[[int], None]) -> None:
    features = video_tokens(5, frames=9, grid=(3, 4), dim=16).features
    whole = kept(features, 0.4)
    cut_into_blocks(2)
    assert kept(features, 0.4) == whole


def test_values_that_are_not_finite_are_refused() -> None:
    features = torch.ones(4, 5, 8)
    features[2, 3, 1] = torch.nan
    with pytest.raises(NotFiniteError, match="features contain NaN"):
        kept(features, 0.5)
