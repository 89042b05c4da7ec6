"""tango.methods.tango: the page and the batched engine say the same, and a subclass may change a step of the page."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tango.containers import PrunedTokens, VisualTokens
from tango.errors import OptionError
from tango.methods.tango import TangoPaperPruner, TangoPruner, TangoReleasePruner
from tests.synthetic import VIDEOS, video_tokens


def by_both(tokens: VisualTokens, pruner: TangoPruner) -> tuple[PrunedTokens, PrunedTokens]:
    page, engine = (dataclasses.replace(pruner, engine=engine)(tokens) for engine in ("plain", "batched"))
    return page, engine


def check(tokens: VisualTokens, pruner: TangoPruner) -> None:
    page, engine = by_both(tokens, pruner)
    assert page.indices.tolist() == engine.indices.tolist()
    assert page.assignment is not None
    assert engine.assignment is not None
    assert page.assignment.tolist() == engine.assignment.tolist()
    torch.testing.assert_close(page.features, engine.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("method", [TangoPruner, TangoPaperPruner, TangoReleasePruner])
def test_ratios(video: str, method: type[TangoPruner], ratio: float) -> None:
    check(video_tokens(**VIDEOS[video]), method(retention_ratio=ratio))


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0},
        {"alpha": 3.0},
        {"context_ratio": 0.0},
        {"context_ratio": 0.75},
        {"context_ratio": 1.0},
        {"num_neighbors": 2},
        {"merge_weight": 0.1},
        {"static_merging": False},
        {"static_threshold": 0.9},
        {"segment_threshold": 0.3, "static_threshold": 0.5},
        {"base_time": 10.0, "base_space": 50.0},
        {"rope_sections": (30, 10, 8)},
        {"rope": "none"},
        {"exact_budget": True},
        {"segmentation": "fastvid"},
    ],
    ids=str,
)
@pytest.mark.parametrize("video", ["flicker", "one_scene"])
def test_options(video: str, options: dict[str, Any]) -> None:
    check(video_tokens(**VIDEOS[video]), TangoPruner(retention_ratio=0.2, **options))


class Count:
    tokens = differing = 0


@settings(max_examples=150)
@given(
    tokens=st.builds(
        video_tokens,
        st.integers(0, 10**6),
        frames=st.integers(1, 12),
        grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        dim=st.sampled_from((6, 48, 130)),
        scenes=st.integers(1, 4),
        static=st.sampled_from((0.0, 0.3, 0.6, 1.0)),
        flicker=st.sampled_from((0.0, 0.9)),
        dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
    ),
    options=st.fixed_dictionaries(
        {
            "retention_ratio": st.sampled_from((0.05, 0.1, 0.2, 0.5, 0.9)),
            "exact_budget": st.booleans(),
            "context_ratio": st.sampled_from((0.0, 0.4, 0.75, 1.0)),
            "alpha": st.sampled_from((1.0, 1.5, 3.0)),
            "num_neighbors": st.sampled_from((1, 7, 50)),
            "segmentation": st.sampled_from(("holitom", "fastvid")),
            "static_merging": st.booleans(),
            "anchor_order": st.sampled_from(("aligned", "release")),
            "rope": st.sampled_from(("seconds", "frames", "none")),
            "merge_weight": st.sampled_from((0.0, 0.6, 1.0)),
        }
    ),
)
def sample(tokens: VisualTokens, options: dict[str, Any]) -> None:
    page, engine = by_both(tokens, TangoPruner(**options))
    assert len(page.indices) == len(engine.indices)
    assert page.assignment is not None
    assert engine.assignment is not None
    same = page.indices[page.assignment] == engine.indices[engine.assignment]
    same |= (page.assignment < 0) & (engine.assignment < 0)
    Count.tokens += len(same)
    Count.differing += int((~same).sum())
    if same.all() and torch.equal(page.indices, engine.indices):
        loose = {"rtol": 2e-2, "atol": 2e-2} if tokens.features.dtype != torch.float32 else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(page.features, engine.features, **loose)


@pytest.mark.usefixtures("unchecked_annotations")
def test_any_video_with_any_options() -> None:
    """Where two distances lie next to each other's tick, rounding may part the two: of 1,000 tokens at most one."""
    sample()
    assert Count.tokens > 5000
    assert Count.differing <= Count.tokens / 1000


@dataclass(frozen=True, kw_only=True)
class EveryNth(TangoPruner):
    """Clusters by position in line, as a rule that cannot be mistaken for another."""

    def cluster(self, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return torch.arange(k), torch.arange(len(points)) % k


@dataclass(frozen=True, kw_only=True)
class LeastSalient(TangoPruner):
    def select(self, saliency: Tensor, points: Tensor, k: int) -> Tensor:
        assert points.shape == (len(saliency), 48)
        return saliency.argsort()[:k]


class TestSubclasses:
    TOKENS = video_tokens(**VIDEOS["all_dynamic"])

    def test_auto_takes_the_page_where_a_step_is_overridden(self) -> None:
        own = EveryNth(retention_ratio=0.2)(self.TOKENS)
        assert torch.equal(own.features, EveryNth(retention_ratio=0.2, engine="plain")(self.TOKENS).features)
        assert not torch.equal(own.indices, TangoPruner(retention_ratio=0.2)(self.TOKENS).indices)

    def test_a_rule_of_clustering_decides_what_is_merged(self) -> None:
        pruned = EveryNth(retention_ratio=0.2, context_ratio=1.0, static_merging=False, merge_weight=0.0)(self.TOKENS)
        assert pruned.assignment is not None
        x, k = self.TOKENS.features, len(pruned.indices) // 8
        lengths = TangoPruner().segments(self.TOKENS)
        first = x[: lengths[0]].flatten(0, 1)
        k *= lengths[0]
        torch.testing.assert_close(pruned.features[0], first[::k].mean(0))

    def test_a_rule_of_selection_decides_what_is_kept_as_it_is(self) -> None:
        pruned = LeastSalient(retention_ratio=0.2, context_ratio=0.0, static_merging=False)(self.TOKENS)
        assert self.TOKENS.saliency is not None
        expected = self.TOKENS.saliency.argsort(1)[:, :8].sort(1).values + 36 * torch.arange(8)[:, None]
        assert pruned.indices.tolist() == expected.flatten().tolist()

    def test_the_batched_engine_refuses_to_ignore_it(self) -> None:
        with pytest.raises(OptionError, match="engine 'batched' does not call cluster of EveryNth"):
            EveryNth(engine="batched")

    @pytest.mark.parametrize("preset", [TangoPaperPruner, TangoReleasePruner])
    def test_presets_change_no_step(self, preset: type[TangoPruner]) -> None:
        assert preset(engine="batched").engine == "batched"


@pytest.mark.parametrize("engine", ["plain", "batched"])
def test_features_stay_differentiable(engine: Any) -> None:
    tokens = video_tokens(**VIDEOS["two_scenes"])
    features = tokens.features.clone().requires_grad_()
    pruned = TangoPruner(engine=engine, retention_ratio=0.2)(dataclasses.replace(tokens, features=features))
    pruned.features.sum().backward()
    assert features.grad is not None
    assert pruned.assignment is not None
    reached = (features.grad.flatten(0, 1) != 0).any(-1)
    assert torch.equal(reached, pruned.assignment >= 0)
