"""tango.methods.tango: what signals and options change, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tango.batched import engine as batched_engine
from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError
from tango.methods import build_pruner
from tango.methods.tango import TangoPruner
from tests.synthetic import VIDEOS, video_tokens


@pytest.fixture(params=VIDEOS)
def tokens(request: pytest.FixtureRequest) -> VisualTokens:
    return video_tokens(**VIDEOS[request.param])


class TestPositions:
    """ST-RoPE's time axis, and ST-RoPE at all, as the paper's Table 3 takes them away."""

    def check_equal(self, pruned: PrunedTokens, expected: PrunedTokens) -> None:
        assert torch.equal(pruned.indices, expected.indices)
        assert torch.equal(pruned.features, expected.features)
        assert pruned.assignment is not None
        assert torch.equal(pruned.assignment, expected.assignment)

    def test_frames_are_seconds_of_one_frame_per_second(self, tokens: VisualTokens) -> None:
        T = len(tokens.timestamps_s)
        every_second = dataclasses.replace(tokens, timestamps_s=torch.arange(T, dtype=torch.float32))
        self.check_equal(TangoPruner(rope="frames")(tokens), TangoPruner()(every_second))

    def test_none_is_rotation_by_nothing(self, tokens: VisualTokens) -> None:
        D = tokens.features.shape[-1]
        at_once = dataclasses.replace(tokens, timestamps_s=torch.zeros_like(tokens.timestamps_s))
        expected = TangoPruner(rope_sections=(D, 0, 0))(at_once)  # time alone rotates, and it is always 0
        self.check_equal(TangoPruner(rope="none")(tokens), expected)

    def test_they_differ(self) -> None:
        tokens = video_tokens(**VIDEOS["flicker"])
        merged = [TangoPruner(rope=name)(tokens).assignment for name in ("seconds", "frames", "none")]
        assert all(not torch.equal(merged[i], merged[i - 1]) for i in range(3))


class TestSaliency:
    SINKS = (0, 7, 20)

    @pytest.mark.parametrize("static", [0.0, 0.5, 1.0])
    def test_sinks_are_not_selected(self, static: float) -> None:
        tokens = video_tokens(static=static, sinks=self.SINKS)
        pruner = TangoPruner(retention_ratio=0.06, context_ratio=0.0)  # all that is kept is salient
        positions = set((pruner(tokens).indices % 36).tolist())
        assert not positions & set(self.SINKS)
        unmarked = pruner(dataclasses.replace(tokens, sink_positions=()))
        assert set(self.SINKS) <= set((unmarked.indices % 36).tolist())

    @pytest.mark.parametrize("engine", ["plain", "batched"])
    def test_given_sinks_take_the_place_of_the_models(self, engine: str) -> None:
        tokens = video_tokens(sinks=self.SINKS)
        bare = dataclasses.replace(tokens, sink_positions=())
        given = TangoPruner(retention_ratio=0.2, sinks=self.SINKS, engine=engine)
        own = TangoPruner(retention_ratio=0.2, engine=engine)
        assert torch.equal(given(bare).indices, own(tokens).indices)
        none = dataclasses.replace(own, sinks=())
        assert torch.equal(none(tokens).indices, own(bare).indices)
        assert not torch.equal(none(tokens).indices, own(tokens).indices)

    def test_sinks_of_another_grid_are_refused(self) -> None:
        with pytest.raises(OptionError, match=r"sinks must lie in \[0, 36\), the positions of a \(6, 6\) grid"):
            TangoPruner(sinks=(36,))(video_tokens())

    def test_only_the_position_of_a_sink_matters_not_its_saliency(self) -> None:
        tokens = video_tokens(sinks=self.SINKS)
        assert tokens.saliency is not None
        other = tokens.saliency.index_fill(1, torch.tensor(self.SINKS), 0.3)
        expected = TangoPruner()(tokens)
        pruned = TangoPruner()(dataclasses.replace(tokens, saliency=other))
        assert torch.equal(pruned.indices, expected.indices)
        assert torch.equal(pruned.features, expected.features)

    def test_each_frame_keeps_its_most_salient_token(self) -> None:
        tokens = video_tokens(static=0.0)
        assert tokens.saliency is not None
        best = torch.arange(8) * 36 + tokens.saliency.argmax(1)
        assert set(best.tolist()) <= set(TangoPruner()(tokens).indices.tolist())

    def test_static_tokens_compete_by_their_mean_saliency(self) -> None:
        tokens = video_tokens(scenes=1, static=1.0)
        assert tokens.saliency is not None
        pruned = TangoPruner(retention_ratio=0.02, alpha=1.0, context_ratio=0.0)(tokens)
        assert pruned.indices.tolist() == sorted(tokens.saliency.mean(0).topk(6).indices.tolist())

    def test_scale_of_saliency_does_not_matter(self, tokens: VisualTokens) -> None:
        assert tokens.saliency is not None
        scaled = dataclasses.replace(tokens, saliency=tokens.saliency * 1024)
        assert torch.equal(TangoPruner()(scaled).indices, TangoPruner()(tokens).indices)

    def test_of_equal_tokens_the_lower_positions_are_kept(self) -> None:
        black = VisualTokens(
            features=torch.zeros(3, 20, 12),
            grid=(4, 5),
            timestamps_s=torch.arange(3.0),
            saliency=torch.full((3, 20), 0.05),
        )
        pruned = TangoPruner(retention_ratio=0.2)(black)  # 4 per frame: 2 salient, 2 merged; zeros are never static
        assert pruned.indices.tolist() == [frame * 20 + position for frame in range(3) for position in range(4)]
        assert pruned.assignment is not None
        rows = pruned.assignment.view(3, 20) - 4 * torch.arange(3)[:, None]
        assert rows.tolist() == [[0, 1, 2, 3] + [2] * 16] * 3


class TestTime:
    @staticmethod
    def blinking(seconds: list[float]) -> VisualTokens:
        """Four frames whose positions 1 to 3 show A, B, A, B; position 0 never changes and makes them one segment."""
        x = torch.zeros(4, 4, 16)
        x[:, 0, 0] = 1
        x[::2, 1:, 2:5] = 1
        x[1::2, 1:, 5:8] = 1
        return VisualTokens(
            features=x, grid=(1, 4), timestamps_s=torch.tensor(seconds), saliency=torch.full((4, 4), 0.25)
        )

    @pytest.mark.parametrize(
        ("seconds", "absorbed_by_frame"),
        [
            ([0, 0, 0, 0], [0, 1, 0, 1]),  # all at once: content decides
            ([0, 9, 0, 9], [0, 1, 0, 1]),  # like content at the same time
            ([0, 0, 9, 9], [0, 1, 2, 3]),  # the same times in another order: like content far apart
            ([0, 9, 18, 27], [0, 1, 2, 3]),
        ],
        ids=str,
    )
    def test_like_tokens_merge_if_they_are_close_in_time(
        self, seconds: list[float], absorbed_by_frame: list[int]
    ) -> None:
        pruner = TangoPruner(retention_ratio=0.1, rope_sections=(16, 0, 0))  # one context token per frame, all time
        pruned = pruner(self.blinking([float(s) for s in seconds]))
        assert len(pruned.indices) == 1 + 4
        assert pruned.assignment is not None
        frame_of_row = pruned.indices // 4
        for position in (1, 2, 3):
            rows = pruned.assignment.view(4, 4)[:, position]
            if position == 3 or seconds == [0, 0, 9, 9]:
                assert frame_of_row[rows].tolist() == absorbed_by_frame

    @pytest.mark.parametrize("seconds", [torch.zeros(8), torch.arange(8.0) * 30, torch.arange(8.0).flip(0)], ids=str)
    def test_time_does_not_matter_within_single_frames(self, seconds: Tensor) -> None:
        tokens = video_tokens(**VIDEOS["all_dynamic"])
        expected = TangoPruner(retention_ratio=0.2)(tokens)
        pruned = TangoPruner(retention_ratio=0.2)(dataclasses.replace(tokens, timestamps_s=seconds))
        assert torch.equal(pruned.indices, expected.indices)
        torch.testing.assert_close(pruned.features, expected.features)

    def test_time_matters_within_longer_segments(self) -> None:
        tokens = video_tokens(**VIDEOS["one_scene"])
        slow = dataclasses.replace(tokens, timestamps_s=tokens.timestamps_s * 10)
        assert not torch.equal(TangoPruner()(slow).indices, TangoPruner()(tokens).indices)

    def test_double_precision_times_are_read_as_single(self) -> None:
        tokens = video_tokens(**VIDEOS["one_scene"])
        double = dataclasses.replace(tokens, timestamps_s=tokens.timestamps_s.double())
        assert torch.equal(TangoPruner()(double).features, TangoPruner()(tokens).features)


class TestFastVidSegments:
    PRUNER = TangoPruner(retention_ratio=0.2, segmentation="fastvid", segment_threshold=-1.0)

    @staticmethod
    def embeds_with_cuts(T: int, cuts: tuple[int, ...]) -> Tensor:
        """Frame vectors that turn sharply before the given frames and gently, ever less, elsewhere."""
        angle = torch.tensor([2.0 if t in cuts else 0.1 / (t + 1) for t in range(T)]).cumsum(0)
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def test_asks_for_frame_embeds_without_insisting(self) -> None:
        assert Signal.FRAME_EMBEDS in self.PRUNER.wants
        assert Signal.FRAME_EMBEDS not in self.PRUNER.needs
        assert Signal.FRAME_EMBEDS not in TangoPruner().wants

    def test_without_frame_embeds_the_mean_token_stands_in(self) -> None:
        tokens = video_tokens(frames=12)
        bare = dataclasses.replace(tokens, frame_embeds=None)
        means = dataclasses.replace(tokens, frame_embeds=tokens.features.mean(1))
        assert torch.equal(self.PRUNER(bare).indices, self.PRUNER(means).indices)

    def test_cuts_where_frame_embeds_say(self) -> None:
        tokens = video_tokens(frames=12, scenes=1, static=1.0)
        cuts = (2, 3, 4, 6, 7, 9, 10)  # seven cuts, eight segments
        pruned = self.PRUNER(dataclasses.replace(tokens, frame_embeds=self.embeds_with_cuts(12, cuts)))
        assert sorted(set((pruned.indices // 36).tolist())) == [0, *cuts]  # static: each segment in its first frame

    def test_other_segmentation_does_not_look_at_frame_embeds(self) -> None:
        tokens = video_tokens()
        bare = dataclasses.replace(tokens, frame_embeds=None)
        assert torch.equal(TangoPruner()(bare).indices, TangoPruner()(tokens).indices)

    @pytest.mark.parametrize("T", [1, 2, 7])
    def test_videos_of_fewer_frames_than_segments_are_cut_into_frames(self, T: int) -> None:
        tokens = video_tokens(frames=T, scenes=1, static=1.0)
        pruned = self.PRUNER(tokens)
        assert ((pruned.indices // 36).bincount(minlength=T) == math.ceil(0.2 * 36)).all()


class TestBlocks:
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_blocks_change_nothing(
        self, tokens: VisualTokens, cut_into_blocks: Callable[[int], None], size: int
    ) -> None:
        whole = TangoPruner(retention_ratio=0.2)(tokens)
        cut_into_blocks(size)
        pruned = TangoPruner(retention_ratio=0.2)(tokens)
        assert torch.equal(pruned.indices, whole.indices)
        torch.testing.assert_close(pruned.features, whole.features)

    def test_single_frames_beyond_the_cache_are_clustered_in_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = video_tokens(**VIDEOS["all_dynamic"])
        whole = TangoPruner(retention_ratio=0.2)(tokens)
        monkeypatch.setattr(batched_engine, "_CPU_BYTES", 3 * 36 * 48 * 4)
        pruned = TangoPruner(retention_ratio=0.2)(tokens)
        assert torch.equal(pruned.indices, whole.indices)
        torch.testing.assert_close(pruned.features, whole.features)


class TestErrors:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("segmentation", ["holitom", "fastvid"])
    @pytest.mark.parametrize("T", [1, 4])
    def test_broken_features(self, value: float, segmentation: str, T: int) -> None:
        tokens = video_tokens(frames=T, scenes=1)
        tokens.features[-1, 5, 2] = value
        with pytest.raises(ValueError, match="contain NaN or infinity"):
            build_pruner("tango", segmentation=segmentation)(tokens)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("T", [1, 4])
    def test_broken_saliency(self, value: float, T: int) -> None:
        tokens = video_tokens(frames=T, scenes=1)
        assert tokens.saliency is not None
        tokens.saliency[0, 3] = value
        with pytest.raises(ValueError, match="saliency contain NaN or infinity"):
            TangoPruner()(tokens)

    def test_overflow_to_infinity_in_half_precision(self) -> None:
        tokens = video_tokens()
        tokens = dataclasses.replace(tokens, features=(tokens.features * 1e5).half())
        with pytest.raises(ValueError, match="in a dtype it overflows"):
            TangoPruner()(tokens)

    @pytest.mark.parametrize("D", [1, 7, 49])
    @pytest.mark.parametrize("method", ["tango", "tango-paper", "tango-release"])
    def test_odd_number_of_channels(self, method: str, D: int) -> None:
        with pytest.raises(ValueError, match=f"even number of channels, got {D}"):
            build_pruner(method)(video_tokens(dim=D))

    @pytest.mark.parametrize("sections", [(16, 16, 14), (15, 17, 16)])
    def test_rope_sections_that_do_not_fit_the_features(self, sections: tuple[int, int, int]) -> None:
        with pytest.raises(ValueError, match="rope_sections must be three even numbers that add up to D = 48"):
            TangoPruner(rope_sections=sections)(video_tokens(dim=48))

    @pytest.mark.usefixtures("unchecked_annotations")
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("segmentation", "dycoke"),
            ("anchor_order", "random"),
            ("rope", "mrope"),
            ("context_ratio", 1.5),
            ("context_ratio", -0.1),
            ("context_ratio", "0.4"),
            ("merge_weight", 1.01),
            ("merge_weight", -1),
            ("alpha", 0.5),
            ("alpha", math.nan),
            ("alpha", math.inf),
            ("num_neighbors", 0),
            ("num_neighbors", 2.5),
            ("segment_threshold", 65),
            ("static_threshold", math.nan),
            ("base_time", 0.0),
            ("base_space", -1.0),
            ("static_merging", "no"),
            ("exact_budget", 1),
            ("rope_sections", (8, 8)),
            ("rope_sections", 48),
            ("sinks", 28),
            ("sinks", (28, 2.5)),
        ],
    )
    def test_options_out_of_range_are_refused_when_built(self, option: str, value: Any) -> None:
        with pytest.raises(
            OptionError, match=f"^{option} must .*got {value!r}".replace("(", r"\(").replace(")", r"\)")
        ):
            build_pruner("tango", **{option: value})

    @pytest.mark.parametrize("value", [0, 1, 0.0, 1.0])
    @pytest.mark.parametrize("option", ["context_ratio", "merge_weight"])
    def test_shares_may_be_none_or_all(self, option: str, value: float, tokens: VisualTokens) -> None:
        pruned = build_pruner("tango", **{option: value})(tokens)
        assert pruned.features.isfinite().all()

    def test_sections_from_a_file_are_a_tuple(self) -> None:
        pruner = build_pruner("tango", rope_sections=[16, 16, 16])
        assert pruner == TangoPruner(rope_sections=(16, 16, 16))
        assert hash(pruner) == hash(TangoPruner(rope_sections=(16, 16, 16)))

    def test_sinks_from_a_file_are_a_tuple(self) -> None:
        pruner = build_pruner("tango", sinks=[28, 27])
        assert pruner == TangoPruner(sinks=(28, 27))
        assert hash(pruner) == hash(TangoPruner(sinks=(28, 27)))
