"""Every method against its authors' code, on the same inputs. Files and rules: tests/data/golden-official/README.md."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen2Config, Qwen2Model

from tango.containers import LayerTokens, PrunedTokens, VisualTokens
from tango.methods import build_layer_pruner, build_pruner, layer_pruner_class, pruner_class
from tango.methods.sparsevlm import _rated_attention, recycling
from tango.ops.clustering import density_peaks_counting_self
from tango.ops.merging import cluster_means
from tango.ops.segmentation import adjacent_similarity, segment_by_cuts
from tango.runtime.layer_prune import layer_pruning

GOLDEN = Path(__file__).parent / "data" / "golden-official"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
PRE_LLM = ("holitom", "fastvid", "visionzip", "vidcom2", "dycoke", "divprune", "prunevid")
INTRA_LLM = (
    "dart", "fastv", "fastv-merge", "framefusion", "holitom-merge", "prunevid-select", "pyramiddrop", "sparsevlm",
)  # fmt: skip
WHOLE_MODEL = [name for name in NAMES if "_e2e_" in name]
ODD_FRAMES = "dycoke_t9_odd_k70"  # the release loses the last frame
LAYER_FIELDS = ("layer", "visual", "text", "queries", "keys", "scale", "norm_weight", "frames", "cells")


@cache
def load(name: str) -> dict[str, NDArray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def method_of(name: str) -> str:
    return name.partition("_")[0]


def files_of(methods: tuple[str, ...], *, without: tuple[str, ...] = ()) -> list[str]:
    return [name for name in NAMES if method_of(name) in methods and name not in (*without, *WHOLE_MODEL)]


def options_of(case: dict[str, NDArray], kind: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)} - {"layer"}
    return {name: value.item() for name, value in case.items() if name in names}


def tokens_of(case: dict[str, NDArray]) -> VisualTokens:
    T, N, _ = case["features"].shape
    signals = {name: torch.from_numpy(case[name]) for name in ("saliency", "keys", "frame_embeds") if name in case}
    grid = tuple(case["grid"].tolist()) if "grid" in case else (1, N)  # no method here looks at the grid
    return VisualTokens(
        features=torch.from_numpy(case["features"]), grid=grid, timestamps_s=torch.arange(float(T)), **signals
    )


def prune(name: str) -> PrunedTokens:
    case, method = load(name), method_of(name)
    return build_pruner(method, **options_of(case, pruner_class(method)))(tokens_of(case))


def prompt_of(case: dict[str, NDArray]) -> LayerTokens:
    values = {name: case[name] for name in LAYER_FIELDS}
    fields = {name: torch.from_numpy(value) if value.ndim else value.item() for name, value in values.items()}
    return LayerTokens(hidden=torch.from_numpy(case["hidden_states"]), counts=tuple(case["counts"].tolist()), **fields)


def prune_layer(name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    case, method = load(name), method_of(name)
    return build_layer_pruner(method, **options_of(case, layer_pruner_class(method)), **options)(prompt_of(case))


def assert_rows(rows: torch.Tensor, expected: NDArray) -> None:
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-4, atol=1e-4)


def assert_rows_in_any_order(rows: torch.Tensor, expected: NDArray) -> None:
    nearest = torch.cdist(rows, torch.from_numpy(expected)).argmin(dim=1)
    assert nearest.sort().values.tolist() == list(range(len(expected)))
    assert_rows(rows, expected[nearest.numpy()])


def test_every_file_is_compared() -> None:
    files = Counter(map(method_of, NAMES))
    assert set(files) == {*PRE_LLM, *INTRA_LLM}
    assert files.total() == 56


@pytest.mark.parametrize("name", files_of(PRE_LLM, without=(ODD_FRAMES, *files_of(("prunevid",)))))
def test_pre_llm(name: str) -> None:
    case, pruned = load(name), prune(name)
    assert pruned.indices.tolist() == case["out_indices"].tolist()
    if "out_features" in case:
        assert_rows(pruned.features, case["out_features"])


def test_an_odd_last_frame_is_not_lost() -> None:
    """The deviation that DyCoke's docstring names; all other frames keep what the release keeps."""
    case, pruned = load(ODD_FRAMES), prune(ODD_FRAMES)
    T, N, _ = case["features"].shape
    before = pruned.indices < (T - 1) * N
    assert pruned.indices[before].tolist() == case["out_indices"].tolist()
    assert_rows(pruned.features[before], case["out_features"])
    assert pruned.indices[~before].tolist() == list(range((T - 1) * N, T * N))  # the first of a group, so whole


@pytest.mark.parametrize("name", files_of(("prunevid",)))
def test_rows_without_indices(name: str) -> None:
    case, pruned = load(name), prune(name)
    assert_rows_in_any_order(pruned.features, case["out_features"])
    ends = np.cumsum(case["window_sizes"]) * case["features"].shape[1]
    per_segment = np.histogram(pruned.indices.numpy(), bins=[0, *ends])[0]
    assert per_segment.tolist() == (case["static_sizes"] + case["dynamic_sizes"]).tolist()


@pytest.mark.parametrize("name", files_of(("fastvid",)))
def test_segments_of_fastvid(name: str) -> None:
    case, tokens = load(name), tokens_of(load(name))
    vectors = tokens.features.mean(1) if tokens.frame_embeds is None else tokens.frame_embeds
    similarity = adjacent_similarity(vectors[:, None])[0][:, 0].numpy()
    lengths = segment_by_cuts(similarity, case["segment_threshold"].item(), min_segments=case["min_segments"].item())
    assert lengths == case["segment_lengths"].tolist()


@pytest.mark.parametrize("name", files_of(INTRA_LLM, without=tuple(files_of(("sparsevlm",)))))
def test_intra_llm(name: str) -> None:
    case, (states, kept) = load(name), prune_layer(name)
    assert kept.tolist() == case["out_indices"].tolist()
    if "out_states" in case:
        assert_rows(states, case["out_states"])


@pytest.mark.parametrize("name", files_of(("dart",)))
def test_pivots_of_dart_by_norm(name: str) -> None:
    _, kept = prune_layer(name, pivot_order="norm")
    assert kept.tolist() == load(name)["out_indices_pivots_by_norm"].tolist()


def test_the_order_of_pivots_matters() -> None:
    differing = [
        name for name in files_of(("dart",))
        if not np.array_equal(load(name)["out_indices"], load(name)["out_indices_pivots_by_norm"])
    ]  # fmt: skip
    assert differing == ["dart_m144_r20"]


@pytest.mark.parametrize("name", files_of(("sparsevlm",)))
def test_stages_of_sparsevlm(name: str) -> None:
    """Scores, what is kept as it is, and how the best of the others are recycled.

    The release appends the recycled means to a full stage; here they count towards it (see the docstring).
    """
    case, prompt = load(name), prompt_of(load(name))
    scores = _rated_attention(prompt) / len(case["out_raters"])  # a sum here, a mean there
    np.testing.assert_allclose(scores.numpy(), case["out_scores"], rtol=1e-4, atol=1e-7)
    states, kept = prune_layer(name, recycle=False)
    assert kept.tolist() == case["out_selected"].tolist()
    assert torch.equal(states, prompt.hidden[prompt.visual[kept]])
    candidates = prompt.hidden[prompt.visual[torch.from_numpy(case["out_candidates"])]]
    num_means = len(case["out_recycled_means"])
    _, nearest = density_peaks_counting_self(candidates[None], num_means, k=num_means)
    clusters = torch.unique(nearest[0], return_inverse=True)[1]
    assert_rows_in_any_order(cluster_means(candidates, clusters, num_means), case["out_recycled_means"])
    assert recycling(576, 300 + num_means) == (len(candidates), num_means)  # a stage of 309 keeps these 300 and 9


@pytest.mark.parametrize("name", WHOLE_MODEL)
def test_whole_model(name: str) -> None:
    """HoliTom's forward pass, whose layer before the pruned one sees no causal mask."""
    case = load(name)
    config = {key.removeprefix("config."): value.item() for key, value in case.items() if key.startswith("config.")}
    model = Qwen2Model(Qwen2Config(**config)).eval()
    weights = {key[2:]: torch.from_numpy(value).float() for key, value in case.items() if key.startswith("w.")}
    assert model.load_state_dict(weights, strict=False).missing_keys == ["embed_tokens.weight"]
    embeds = torch.from_numpy(case["inputs_embeds"]).float()[None]
    columns, start = torch.arange(embeds.shape[1])[None], case["visual_start"].item()
    layer = case["layer"].item()
    pruner = build_layer_pruner(
        "holitom-merge", layer=layer, retention_ratio=case["retention_ratio"].item(), noncausal_layer=True
    )
    entering: list[torch.Tensor] = []
    model.layers[layer].input_layernorm.register_forward_pre_hook(lambda _module, args: entering.append(args[0]))
    visual = (columns >= start) & (columns < start + case["num_visual"].item())
    with torch.no_grad(), layer_pruning(
        model, pruner, is_visual=visual, attention_mask=torch.ones_like(columns)
    ):  # fmt: skip
        states = model(inputs_embeds=embeds, use_cache=False).last_hidden_state[0]
    kept = torch.from_numpy(case["out_kept_columns"])
    assert entering[0].shape[1] == len(kept)
    assert_rows(entering[0][0], case["out_layer_input"])
    assert_rows(states[kept], case["out_last_hidden"])
