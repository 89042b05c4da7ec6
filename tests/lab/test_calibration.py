"""`tango.lab.signals.calibration`: what is suggested, and why, on tokens whose answer is known."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from tango.containers import VisualTokens
from tango.errors import NotFiniteError
from tango.lab.signals.calibration import kept_share, observe, suggest
from tango.methods import TangoPruner
from tests.synthetic import VIDEOS, video_tokens


def videos(count: int = 5, **options: object) -> list[VisualTokens]:
    return [video_tokens(seed=i, **options) for i in range(count)]


def alike(tokens: VisualTokens, cosine: float) -> VisualTokens:
    """The same tokens with one direction that all share, so that unrelated ones have about this cosine."""
    unit = F.normalize(tokens.features, dim=-1)
    own, common = torch.cat([unit, torch.zeros(*unit.shape[:2], 1)], dim=-1), torch.zeros(49)
    common[-1] = 1.0
    features = own * (1 - cosine) ** 0.5 + common * cosine**0.5
    return dataclasses.replace(tokens, features=features, text=None)  # it has the width of the features


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("ratio", [0.1, 0.2])
@pytest.mark.parametrize("thresholds", [(0.65, 0.8), (0.9, 0.95), (0.3, 0.2)])
def test_the_share_kept_is_that_of_the_method(name, ratio, thresholds):
    tokens, (segment, static) = video_tokens(**VIDEOS[name]), thresholds
    pruner = TangoPruner(retention_ratio=ratio, segment_threshold=segment, static_threshold=static)
    kept = len(pruner(tokens).indices) / tokens.features[..., 0].numel()
    assert kept_share(observe(tokens), ratio, segment, static) == pytest.approx(kept)


def test_a_single_frame_is_a_video_too():
    tokens = video_tokens(frames=1, scenes=1)
    kept = len(TangoPruner(retention_ratio=0.2)(tokens).indices) / 36
    assert kept_share(observe(tokens), 0.2, 0.8, 0.8) == pytest.approx(kept)


@pytest.mark.parametrize("field", ["features", "saliency"])
def test_numbers_that_are_not_finite_are_refused(field):
    tokens = video_tokens()
    getattr(tokens, field)[3, 5] = float("nan")
    with pytest.raises(NotFiniteError, match="features or saliency"):
        observe(tokens)


class TestSinks:
    def test_planted_ones_are_suggested(self):
        found = suggest([observe(tokens) for tokens in videos(sinks=(7,))], 0.1)
        assert found.options["sinks"] == [7]
        assert "beyond the model's own: none; of these not found: none" in found.reasons["sinks"]

    def test_those_that_the_model_lists_are_held_against_what_is_found(self):
        given = [dataclasses.replace(tokens, sink_positions=(3,)) for tokens in videos(sinks=(7,))]
        found = suggest([observe(tokens) for tokens in given], 0.1)
        assert found.options["sinks"] == [7]
        assert "beyond the model's own: [7]; of these not found: [3]" in found.reasons["sinks"]

    @pytest.mark.parametrize("seed", range(3))
    def test_without_sinks_none_is_suggested(self, seed):
        found = suggest([observe(video_tokens(seed=100 * seed + i)) for i in range(5)], 0.1)
        assert "sinks" not in found.options
        assert "no position is" in found.reasons["sinks"]

    def test_where_the_videos_are_too_few_the_models_own_stay(self):
        found = suggest([observe(tokens) for tokens in videos(2, sinks=(7,))], 0.1)
        assert "sinks" not in found.options
        assert found.reasons["sinks"] == "2 videos cannot tell a sink from chance; the model's own stay (7)"

    def test_where_grids_differ_they_are_not_looked_for(self):
        found = suggest([observe(video_tokens()), observe(video_tokens(grid=(3, 10)))], 0.1)
        assert "sinks" not in found.options
        assert "different grids; none are masked" in found.reasons["sinks"]
        assert "needs two videos of one grid" in found.reasons["static_threshold"]


class TestThresholds:
    @pytest.mark.parametrize(("ratio", "segment"), [(0.1, 0.65), (0.2, 0.8)])
    def test_stay_where_unrelated_tokens_are_unlike(self, ratio, segment):
        found = suggest([observe(tokens) for tokens in videos()], ratio)
        assert found.options["segment_threshold"] == segment
        assert found.options["static_threshold"] == 0.8
        assert found.reasons["static_threshold"].startswith("the default; 0.0 % of the tokens of two")

    def test_are_raised_where_unrelated_tokens_are_alike(self):
        given = [alike(tokens, 0.85) for tokens in videos()]
        found = suggest([observe(tokens) for tokens in given], 0.1)
        sample = [F.normalize(t.features[[0, 2, 5, 7]], dim=-1) for t in given]  # four of eight frames
        pairs = [(a * b).sum(-1).flatten().tolist() for i, a in enumerate(sample) for b in sample[:i]]
        highest = statistics.median(sorted(pair)[math.ceil(0.99 * (len(pair) - 1))] for pair in pairs)
        for name in ("segment_threshold", "static_threshold"):
            assert 0.85 < highest < found.options[name] <= highest + 0.001 < 1
            assert "raised from" in found.reasons[name]

    def test_two_videos_of_one_scene_do_not_raise_them(self):
        given = videos(5)
        found = suggest([observe(tokens) for tokens in [*given, given[0]]], 0.1)
        assert found.options["static_threshold"] == 0.8

    def test_one_video_says_nothing_about_them(self):
        found = suggest([observe(video_tokens())], 0.1)
        assert (found.options["segment_threshold"], found.options["static_threshold"]) == (0.65, 0.8)
        assert "two videos" in found.reasons["segment_threshold"]


class TestBudget:
    def test_is_exact_where_a_still_video_keeps_far_less(self):
        found = suggest([observe(video_tokens(frames=16, scenes=1, static=1.0, grid=(10, 10)))], 0.1)
        assert found.options["exact_budget"] is True
        assert found.kept[0] < 0.09
        assert "1 of 1 off by more than a tenth" in found.reasons["exact_budget"]

    def test_is_nominal_where_that_is_kept(self):
        found = suggest([observe(video_tokens(static=0.0, grid=(10, 10)))], 0.1)
        assert found.options["exact_budget"] is False
        assert found.kept == [pytest.approx(0.1)]
