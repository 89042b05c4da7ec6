"""The numbers of the authors' released code, on synthetic inputs. Files and rules: tests/data/golden/README.md."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tango.containers import PrunedTokens, VisualTokens
from tango.methods import build_pruner
from tango.ops.clustering import density_peaks, dpc_knn
from tango.ops.segmentation import adjacent_similarity, segment_by_cuts, segment_by_static_tokens
from tango.ops.strope import strope

GOLDEN = Path(__file__).parent / "data" / "golden"
PRUNER_CASES = sorted(path.stem for path in GOLDEN.glob("g*.npz"))
ROPE_CASES = sorted(path.stem for path in GOLDEN.glob("r*.npz"))
EXPECTED_ROWS = {"tango": "merged_fixed", "tango-release": "merged_official"}


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def tokens_of(case: dict[str, NDArray], dtype: torch.dtype = torch.float32) -> VisualTokens:
    embeds = case.get("sim_metric")
    return VisualTokens(
        features=torch.from_numpy(case["features"]).to(dtype),
        grid=tuple(case["grid"].tolist()),
        timestamps_s=torch.from_numpy(case["t_ids"]),
        saliency=torch.from_numpy(case["score"]),
        frame_embeds=None if embeds is None else torch.from_numpy(embeds),
        sink_positions=tuple(case["sinks"].tolist()) if case["variant"] == "llava" else (),
    )


def run(
    method: str, case: dict[str, NDArray], dtype: torch.dtype = torch.float32, engine: str = "auto"
) -> PrunedTokens:
    pruner = build_pruner(
        method,
        engine=engine,
        retention_ratio=float(case["retain_ratio"]),
        segmentation=str(case["segment_type"]),
        segment_threshold=float(case["tau"]),
        context_ratio=float(case["context_ratio"]),
        alpha=float(case["alpha"]),
        num_neighbors=int(case["k_neighbors"]),
        base_time=float(case["base_time"]),
        base_space=float(case["base_space"]),
        rope_sections=tuple(case["section"].tolist()),
        merge_weight=float(case["beta"]),
    )
    return pruner(tokens_of(case, dtype))


def test_every_file_is_here() -> None:
    names = sorted(path.name for path in GOLDEN.glob("*.npz"))
    assert len(names) == 17
    assert (len(PRUNER_CASES), len(ROPE_CASES)) == (12, 3)
    assert {"s01_segmentation.npz", "d01_dpc_knn.npz"} < set(names)


@pytest.mark.parametrize("name", PRUNER_CASES)
@pytest.mark.parametrize("method", EXPECTED_ROWS)
@pytest.mark.parametrize("engine", ["plain", "batched"])
def test_pruner(engine: str, method: str, name: str) -> None:
    case = load(name)
    pruned = run(method, case, engine=engine)
    expected = case[EXPECTED_ROWS[method]]
    assert pruned.indices.tolist() == case["kept_indices"].tolist()
    np.testing.assert_allclose(pruned.features.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", PRUNER_CASES)
@pytest.mark.parametrize("engine", ["plain", "batched"])
def test_half_precision_input_changes_rounding_but_no_decision(engine: str, name: str) -> None:
    case = load(name)  # the features are exact in float16
    pruned = run("tango", case, torch.float16, engine)
    expected = case["merged_fixed"]
    assert pruned.indices.tolist() == case["kept_indices"].tolist()
    # Half a unit in the last place (2**-11), once for the mean of static tokens and once for the merged row.
    np.testing.assert_allclose(pruned.features.float().numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_some_cases_tell_the_two_anchor_orders_apart() -> None:
    differing = [name for name in PRUNER_CASES if not np.array_equal(*map(load(name).get, EXPECTED_ROWS.values()))]
    assert len(differing) == 10


@pytest.mark.parametrize("name", PRUNER_CASES)
def test_similarity_and_segments(name: str) -> None:
    case = load(name)
    tokens = tokens_of(case)
    similarity, _ = adjacent_similarity(tokens.features)
    np.testing.assert_allclose(similarity.numpy(), case["frame_similarity"], rtol=0, atol=1e-5)
    if tokens.frame_embeds is None:
        sizes = segment_by_static_tokens(similarity.numpy(), float(case["tau"]))
    else:
        by_frame, _ = adjacent_similarity(tokens.frame_embeds[:, None])
        sizes = segment_by_cuts(by_frame[:, 0].numpy(), float(case["tau"]))
    assert sizes == case["segment_sizes"].tolist()


@pytest.mark.parametrize("name", ROPE_CASES)
def test_rotary_embedding(name: str) -> None:
    case = load(name)
    roped = strope(
        F.normalize(torch.from_numpy(case["features"]).float(), dim=-1),
        torch.from_numpy(case["t_ids"]),
        tuple(case["grid"].tolist()),
        sections=tuple(case["section"].tolist()),
        base_time=float(case["base_time"]),
        base_space=float(case["base_space"]),
    )
    # Float32 angles, as in the release, come within 1e-7; float64 ones differ by 2.4e-5 at half an hour.
    np.testing.assert_allclose(roped.numpy(), case["roped"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", range(60))
def test_segmentation_by_static_tokens(number: int) -> None:
    case, prefix = load("s01_segmentation"), f"h{number:02d}"
    sizes = segment_by_static_tokens(case[f"{prefix}_sim"], float(case[f"{prefix}_tau"]))
    assert sizes == case[f"{prefix}_sizes"].tolist()


@pytest.mark.parametrize("number", range(20))
def test_segmentation_by_cuts(number: int) -> None:
    case, prefix = load("s01_segmentation"), f"f{number:02d}"
    sizes = segment_by_cuts(case[f"{prefix}_sim"], float(case[f"{prefix}_tau"]), min_segments=int(case[f"{prefix}_c"]))
    assert sizes == case[f"{prefix}_sizes"].tolist()


def test_no_stored_segmentation_or_clustering_is_left_out() -> None:
    assert len(load("s01_segmentation")) == 60 * 3 + 20 * 4
    assert len(load("d01_dpc_knn")) == 7 * 4


@pytest.mark.parametrize("number", range(7))
def test_clustering(number: int) -> None:
    case = load("d01_dpc_knn")
    x, centres = torch.from_numpy(case[f"d{number}_x"]), case[f"d{number}_centres"]
    best_first, nearest = density_peaks(x[None], len(centres), k=int(case[f"d{number}_k"]))
    assert best_first[0].tolist() == centres.tolist()
    assert dpc_knn(x, len(centres), k=int(case[f"d{number}_k"]))[0].tolist() == centres.tolist()
    place_among_centres = torch.searchsorted(best_first[0].sort().values, nearest[0])
    assert place_among_centres.tolist() == case[f"d{number}_assign"].tolist()
