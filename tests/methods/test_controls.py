"""The controls `downsample` and `fewer-frames`: as defined, and exact at every ratio."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tango
from tango.containers import PrunedTokens, VisualTokens
from tango.methods.downsample import DownsamplePruner
from tango.methods.fewer_frames import FewerFramesPruner
from tests import tiny
from tests.synthetic import video_tokens

GOLDEN = Path(__file__).parents[1] / "data" / "golden-controls"
FILES = ("ct01_8x8", "ct02_7x9", "ct03_short")
EXACT = (DownsamplePruner(), FewerFramesPruner(exact_budget=True))
RATIOS = (1e-6, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.77, 0.9, 0.999)


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def tokens_of(case: dict[str, NDArray]) -> VisualTokens:
    x = torch.from_numpy(case["features"]).float()
    return VisualTokens(features=x, grid=tuple(case["grid"].tolist()), timestamps_s=torch.arange(float(len(x))))


def assert_equals(pruned: PrunedTokens, case: dict[str, NDArray], prefix: str) -> None:
    assert pruned.indices.tolist() == case[f"{prefix}_indices"].tolist()
    rows = case[f"{prefix}_features"]
    np.testing.assert_allclose(pruned.features.numpy(), rows, rtol=1e-4, atol=1e-5 * np.abs(rows).max())


@pytest.mark.parametrize("name", FILES)
def test_golden_numbers(name: str) -> None:
    case, tokens = load(name), tokens_of(load(name))
    T, N, _ = tokens.features.shape
    compared = {"features", "grid", "rs"}
    for r in case["rs"].tolist():
        down = DownsamplePruner(retention_ratio=r)(tokens)
        assert_equals(down, case, f"down_r{r:g}")
        assert (down.indices // N).bincount(minlength=T).tolist() == case[f"down_r{r:g}_per_frame"].tolist()
        for kind, exact in (("nominal", False), ("exact", True)):
            fewer = FewerFramesPruner(retention_ratio=r, exact_budget=exact)(tokens)
            assert_equals(fewer, case, f"fewer_{kind}_r{r:g}")
            assert (fewer.indices // N).unique().tolist() == case[f"fewer_{kind}_r{r:g}_frames"].tolist()
        kinds = {f"down_r{r:g}": "per_frame", f"fewer_nominal_r{r:g}": "frames", f"fewer_exact_r{r:g}": "frames"}
        compared |= {f"{key}_{what}" for key, last in kinds.items() for what in ("features", "indices", last)}
    assert compared == set(case)


@pytest.mark.parametrize("pruner", EXACT, ids=lambda pruner: pruner.name)
@pytest.mark.parametrize(("T", "grid"), [(32, (14, 14)), (7, (5, 9)), (1, (3, 3)), (9, (1, 1))])
def test_any_ratio_is_met(pruner: tango.Pruner, T: int, grid: tuple[int, int]) -> None:
    tokens = video_tokens(frames=T, grid=grid, dim=4)
    for r in RATIOS:
        pruned = dataclasses.replace(pruner, retention_ratio=r)(tokens)
        assert len(pruned.indices) == max(1, round(r * T * grid[0] * grid[1]))


@pytest.mark.parametrize("pruner", [*EXACT, FewerFramesPruner()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_constant_frames_stay_constant(pruner: tango.Pruner, dtype: torch.dtype) -> None:
    x = torch.arange(1.0, 7.0)[:, None, None].expand(6, 20, 3).to(dtype)
    tokens = VisualTokens(features=x, grid=(4, 5), timestamps_s=torch.arange(6.0))
    for r in RATIOS:
        pruned = dataclasses.replace(pruner, retention_ratio=r)(tokens)
        assert torch.equal(pruned.features, x.flatten(0, 1)[pruned.indices])


def test_every_token_of_a_frame_counts_once_when_downsampled() -> None:
    tokens = video_tokens(frames=5, grid=(6, 7), dim=8)
    pruned = DownsamplePruner(retention_ratio=0.13)(tokens)
    assert pruned.assignment is not None
    sizes = pruned.assignment.bincount()
    for t in range(5):
        own = pruned.indices // 42 == t
        mean = (pruned.features[own] * sizes[own, None]).sum(0) / 42
        torch.testing.assert_close(mean, tokens.features[t].mean(0))


def test_frames_are_kept_whole() -> None:
    tokens = video_tokens(frames=10, grid=(3, 4), dim=8)
    pruned = FewerFramesPruner(retention_ratio=0.3)(tokens)
    assert torch.equal(pruned.features, tokens.features[[1, 5, 8]].flatten(0, 1))
    assert pruned.assignment is not None
    assert (pruned.assignment >= 0).view(10, 12).all(1).nonzero().flatten().tolist() == [1, 5, 8]
    assert (pruned.assignment >= 0).sum() == 36


@pytest.mark.parametrize("method", ["downsample", "fewer-frames"])
def test_run_in_a_model(method: str) -> None:
    model = tiny.llava_onevision()
    inputs = {**tiny.batch(tiny.prompt("Look: ", 6, " What?")), "pixel_values_videos": tiny.clip(1)[None]}
    with tango.prune(model, method, retention_ratio=0.25, exact_budget=True) as pruning:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert pruning.stats.tokens_after == 24
