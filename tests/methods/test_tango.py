"""tango.methods.tango: the method of the paper and its presets."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tango.containers import PrunedTokens, VisualTokens
from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods.tango import TangoPaperPruner, TangoPruner, TangoReleasePruner
from tango.ops.segmentation import segment_by_static_tokens
from tests.synthetic import VIDEOS, video_tokens


@pytest.fixture(params=VIDEOS)
def tokens(request: pytest.FixtureRequest) -> VisualTokens:
    return video_tokens(**VIDEOS[request.param])


def cosines(tokens: VisualTokens) -> Tensor:
    return F.cosine_similarity(tokens.features[:-1].float(), tokens.features[1:].float(), dim=-1)


def segment_bounds(tokens: VisualTokens, pruner: TangoPruner) -> list[tuple[int, int]]:
    """First frame of each segment and of the next one."""
    lengths = segment_by_static_tokens(cosines(tokens).numpy(), pruner.resolved_segment_threshold)
    edges = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return list(pairwise(edges))


def static_positions(tokens: VisualTokens, pruner: TangoPruner) -> Tensor:
    """Which tokens are averaged over their segment, (T, N)."""
    static = torch.zeros(tokens.features.shape[:2], dtype=torch.bool)
    for start, stop in segment_bounds(tokens, pruner):
        if stop - start > 1:
            static[start:stop] = (cosines(tokens)[start : stop - 1] > pruner.resolved_static_threshold).all(0)
    return static


def member_means(tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
    """Mean and number of the source tokens that `assignment` counts to each kept row."""
    assert pruned.assignment is not None
    x, K = tokens.features.flatten(0, 1), len(pruned.indices)
    members = F.one_hot(pruned.assignment + 1, K + 1)[:, 1:].T.float()
    return members @ x / members.sum(1, keepdim=True), members.sum(1)


class TestPresets:
    def test_defaults_differ_in_one_field_each(self) -> None:
        default = TangoPruner().config()
        assert TangoPaperPruner().config() == {**default, "merge_weight": 0.0}
        assert TangoReleasePruner().config() == {**default, "anchor_order": "release"}

    def test_documented_defaults(self) -> None:
        assert TangoPruner().config() == {
            "retention_ratio": 0.1,
            "exact_budget": False,
            "segmentation": "holitom",
            "segment_threshold": None,
            "static_threshold": None,
            "static_merging": True,
            "context_ratio": 0.4,
            "alpha": 1.5,
            "num_neighbors": 7,
            "base_time": 1e4,
            "base_space": 1e3,
            "rope": "seconds",
            "rope_sections": None,
            "merge_weight": 0.6,
            "anchor_order": "aligned",
            "sinks": None,
            "kernels": True,
            "engine": "auto",
        }

    @pytest.mark.parametrize(
        ("ratio", "threshold"), [(0.05, 0.65), (0.1, 0.65), (0.100001, 0.8), (0.2, 0.8), (0.5, 0.8)]
    )
    def test_thresholds_follow_the_ratio(self, ratio: float, threshold: float) -> None:
        default, paper = TangoPruner(retention_ratio=ratio), TangoPaperPruner(retention_ratio=ratio)
        assert default.resolved_segment_threshold == paper.resolved_segment_threshold == threshold
        assert default.resolved_static_threshold == 0.8  # the release's constant
        assert paper.resolved_static_threshold == threshold  # the paper has only one

    @pytest.mark.parametrize("method", [TangoPruner, TangoPaperPruner, TangoReleasePruner])
    @pytest.mark.parametrize("threshold", [0.0, -0.5, 0.7])
    def test_given_thresholds_are_taken(self, method: type[TangoPruner], threshold: float) -> None:
        pruner = method(segment_threshold=threshold, static_threshold=threshold / 2)
        assert pruner.resolved_segment_threshold == threshold
        assert pruner.resolved_static_threshold == threshold / 2

    def test_papers_static_threshold_follows_a_given_segment_threshold(self) -> None:
        assert TangoPaperPruner(segment_threshold=0.7).resolved_static_threshold == 0.7
        assert TangoPruner(segment_threshold=0.7).resolved_static_threshold == 0.8

    def test_paper_with_the_releases_values_is_the_default(self, tokens: VisualTokens) -> None:
        paper = TangoPaperPruner(merge_weight=0.6, static_threshold=0.8)(tokens)
        default = TangoPruner()(tokens)
        assert torch.equal(paper.indices, default.indices)
        assert torch.equal(paper.features, default.features)

    def test_release_keeps_the_same_tokens_and_rows_in_another_order(self, tokens: VisualTokens) -> None:
        default, release = TangoPruner()(tokens), TangoReleasePruner()(tokens)
        assert torch.equal(release.indices, default.indices)
        assert not torch.equal(release.features, default.features)
        distance = torch.cdist(release.features, default.features, compute_mode="donot_use_mm_for_euclid_dist")
        assert torch.equal(distance.argmin(1).sort().values, torch.arange(len(default.indices)))
        assert distance.amin(1).max() == 0

    def test_release_assignment_follows_its_misplaced_rows(self, tokens: VisualTokens) -> None:
        pruned = TangoReleasePruner(retention_ratio=0.2, merge_weight=0.0)(tokens)
        means, _ = member_means(tokens, pruned)
        torch.testing.assert_close(pruned.features, means, rtol=1e-4, atol=1e-5)


class TestMerging:
    def test_weight_one_leaves_every_row_its_own_token(self, tokens: VisualTokens) -> None:
        pruner = TangoPruner(retention_ratio=0.2, merge_weight=1.0)
        pruned = pruner(tokens)
        T, N, D = tokens.features.shape
        static = static_positions(tokens, pruner)
        own = tokens.features.clone()
        for start, stop in segment_bounds(tokens, pruner):
            own[start:stop][:, static[start]] = tokens.features[start:stop][:, static[start]].mean(0)
        kept_static = static.flatten()[pruned.indices]
        expected = own.reshape(T * N, D)[pruned.indices]
        assert torch.equal(pruned.features[~kept_static], expected[~kept_static])
        torch.testing.assert_close(pruned.features[kept_static], expected[kept_static])

    @pytest.mark.parametrize("exact_budget", [False, True])
    @pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5])
    def test_weight_zero_is_the_mean_of_all_assigned_tokens(
        self, tokens: VisualTokens, ratio: float, exact_budget: bool
    ) -> None:
        pruned = TangoPruner(retention_ratio=ratio, merge_weight=0.0, exact_budget=exact_budget)(tokens)
        means, _ = member_means(tokens, pruned)
        torch.testing.assert_close(pruned.features, means, rtol=1e-4, atol=1e-5)

    def test_default_weight_blends_the_anchor_with_that_mean(self) -> None:
        tokens = video_tokens(**VIDEOS["all_dynamic"])  # without averaged tokens, members are source tokens
        pruned = TangoPruner(retention_ratio=0.2)(tokens)
        means, counts = member_means(tokens, pruned)
        weight = (1 / counts).clamp_min(0.6)[:, None]
        anchors = tokens.features.flatten(0, 1)[pruned.indices]
        torch.testing.assert_close(pruned.features, weight * anchors + (1 - weight) * means, rtol=1e-4, atol=1e-5)
        assert (counts > 2).any()

    def test_every_token_ends_in_some_row(self, tokens: VisualTokens) -> None:
        pruned = TangoPruner(retention_ratio=0.2)(tokens)
        assert pruned.assignment is not None
        assert pruned.assignment.min() == 0

    def test_without_context_what_is_not_salient_is_dropped(self) -> None:
        tokens = video_tokens(**VIDEOS["all_dynamic"])
        pruned = TangoPruner(retention_ratio=0.2, context_ratio=0.0)(tokens)
        assert pruned.assignment is not None
        assert int((pruned.assignment >= 0).sum()) == len(pruned.indices)
        assert torch.equal(pruned.features, tokens.features.flatten(0, 1)[pruned.indices])

    def test_clusters_stay_within_their_segment(self, tokens: VisualTokens) -> None:
        pruner = TangoPruner(retention_ratio=0.2)
        pruned = pruner(tokens)
        T, N, _ = tokens.features.shape
        segment = torch.empty(T, dtype=torch.long)
        for number, (start, stop) in enumerate(segment_bounds(tokens, pruner)):
            segment[start:stop] = number
        assert pruned.assignment is not None
        kept_in = segment[pruned.indices // N]
        assert torch.equal(kept_in[pruned.assignment], segment.repeat_interleave(N))

    def test_static_tokens_are_kept_in_the_first_frame_of_their_segment(self, tokens: VisualTokens) -> None:
        pruner = TangoPruner(retention_ratio=0.2)
        pruned = pruner(tokens)
        N = tokens.features.shape[1]
        first_frames = [start for start, _ in segment_bounds(tokens, pruner)]
        kept_static = pruned.indices[static_positions(tokens, pruner).flatten()[pruned.indices]]
        assert set((kept_static // N).tolist()) <= set(first_frames)

    def test_copies_of_a_static_token_share_its_row(self, tokens: VisualTokens) -> None:
        pruner = TangoPruner(retention_ratio=0.2)
        assignment = pruner(tokens).assignment
        assert assignment is not None
        rows, static = assignment.view(tokens.features.shape[:2]), static_positions(tokens, pruner)
        for start, stop in segment_bounds(tokens, pruner):
            block = rows[start:stop][:, static[start]]
            assert torch.equal(block, block[:1].expand_as(block))

    def test_static_merging_can_be_switched_off(self) -> None:
        tokens = video_tokens(**VIDEOS["all_static"])
        merged = TangoPruner(retention_ratio=0.1)(tokens)
        single = TangoPruner(retention_ratio=0.1, static_merging=False)(tokens)
        assert len(merged.indices) == 29  # ceil(8 * 0.1 * 36), all in the first frame
        assert merged.indices.max() < 36
        assert len(single.indices) == 8 * 4  # ceil(0.1 * 36) per frame
        own_rows = TangoPruner(retention_ratio=0.1, static_merging=False, merge_weight=1.0)(tokens)
        assert torch.equal(own_rows.features, tokens.features.flatten(0, 1)[own_rows.indices])


class TestCounts:
    @pytest.mark.parametrize(("ratio", "per_frame"), [(0.1, 20), (0.15, 30), (0.2, 40)])
    def test_changing_video_of_llava_onevision_size(self, ratio: float, per_frame: int) -> None:
        tokens = video_tokens(frames=32, grid=(14, 14), static=0.0)
        assert not static_positions(tokens, TangoPruner(retention_ratio=ratio)).any()
        pruned = TangoPruner(retention_ratio=ratio)(tokens)
        assert len(pruned.indices) == {0.1: 640, 0.15: 960, 0.2: 1280}[ratio]
        assert ((pruned.indices // 196).bincount() == per_frame).all()

    @pytest.mark.parametrize(("ratio", "expected"), [(0.1, 627), (0.15, 941), (0.2, 1254)])
    def test_exact_budget_of_the_same_video(self, ratio: float, expected: int) -> None:
        tokens = video_tokens(frames=32, grid=(14, 14), static=0.0)
        pruned = TangoPruner(retention_ratio=ratio, exact_budget=True)(tokens)
        assert len(pruned.indices) == expected
        assert set((pruned.indices // 196).bincount().tolist()) <= {expected // 32, expected // 32 + 1}

    @pytest.mark.parametrize(("context_ratio", "salient"), [(0.0, 20), (0.4, 12), (0.5, 10), (0.99, 0), (1.0, 0)])
    def test_share_of_salient_tokens_in_a_frame(self, context_ratio: float, salient: int) -> None:
        tokens = video_tokens(frames=1, scenes=1, grid=(14, 14))
        pruned = TangoPruner(retention_ratio=0.1, context_ratio=context_ratio, alpha=1.0)(tokens)
        assert tokens.saliency is not None
        top = tokens.saliency[0].sort(descending=True).indices[:salient]
        assert len(pruned.indices) == 20
        assert set(top.tolist()) <= set(pruned.indices.tolist())
        unmerged = (pruned.features == tokens.features[0, pruned.indices]).all(1)
        assert int(unmerged.sum()) >= salient

    def test_exact_budget_gives_up_averaging_where_it_would_leave_too_few(self) -> None:
        tokens = video_tokens(**VIDEOS["all_static"])
        pruned = TangoPruner(retention_ratio=0.5, exact_budget=True)(tokens)
        assert len(pruned.indices) == 144  # averaging would leave 36
        assert set((pruned.indices // 36).tolist()) == set(range(8))

    def test_exact_budget_averages_where_that_leaves_enough(self) -> None:
        tokens = video_tokens(**VIDEOS["all_static"])
        pruned = TangoPruner(retention_ratio=0.1, exact_budget=True)(tokens)
        assert len(pruned.indices) == 29
        assert pruned.indices.max() < 36


def test_segments_of_features_with_a_gradient() -> None:
    tokens = synthetic_tokens("take", 5, (4, 4), 48)
    tokens = dataclasses.replace(tokens, features=tokens.features.requires_grad_())
    assert TangoPruner().segments(tokens) == [5]
