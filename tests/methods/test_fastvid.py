"""tango.methods.fastvid: FastVID, by the rules of its releases for LLaVA-OneVision and for the other models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError
from tango.methods import build_pruner
from tango.methods.fastvid import FastVidPruner
from tango.ops.anchor_frames import divided_counts
from tests.synthetic import video_tokens

VIDEOS: dict[str, dict[str, Any]] = {
    "two_scenes": {"seed": 1, "frames": 20},
    "flicker": {"seed": 2, "flicker": 0.9, "frames": 15, "sinks": (3, 20)},
    "one_scene": {"seed": 3, "frames": 12, "scenes": 1, "static": 0.3},
    "wide": {"seed": 6, "grid": (3, 10), "frames": 24, "scenes": 3, "dim": 50},
    "two_frames": {"seed": 8, "frames": 2},
    "one_frame": {"seed": 7, "frames": 1, "scenes": 1},
}


@pytest.fixture(params=VIDEOS)
def tokens(request: pytest.FixtureRequest) -> VisualTokens:
    return video_tokens(**VIDEOS[request.param])


def with_segments(lengths: Sequence[int], N: int = 196, dim: int = 4) -> VisualTokens:
    """A video that FastVID cuts into segments of these lengths: its frame vectors turn where one ends."""
    T, g = sum(lengths), torch.Generator().manual_seed(0)
    embeds = torch.eye(len(lengths))[torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))]
    return VisualTokens(
        features=torch.randn(T, N, dim, generator=g),
        grid=(1, N),
        timestamps_s=torch.arange(float(T)),
        saliency=torch.rand(T, N, generator=g),
        frame_embeds=embeds,
    )


# --- the method written out in loops over numpy vectors, in double precision


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def oracle_segments(embeds: np.ndarray, c: int, tau: float) -> list[list[int]]:
    similarity = [cosine(a, b) for a, b in pairwise(embeds)]
    weakest = sorted(range(len(similarity)), key=lambda t: (similarity[t], t))[: c - 1]
    segments = [[0]]
    for t, s in enumerate(similarity):
        if s < tau or t in weakest:
            segments.append([])
        segments[-1].append(t + 1)
    return segments


def oracle_centres(rows: np.ndarray, c: int, k: int) -> list[int]:
    """DPC-KNN with a row among its own k neighbours and without noise."""
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=-1) / math.sqrt(rows.shape[1])
    rho = [math.exp(-np.mean(np.sort(line)[:k] ** 2)) for line in distance]
    gamma = []
    for i in range(len(rows)):
        denser = [j for j in range(len(rows)) if (rho[j], -j) > (rho[i], -i)]
        gamma.append(rho[i] * (min(distance[i][j] for j in denser) if denser else distance.max()))
    return sorted(sorted(range(len(rows)), key=lambda i: (-gamma[i], i))[:c])


def oracle(
    tokens: VisualTokens, r: float, *, c: int = 8, tau: float = 0.9, d: float = 0.4, p: int = 4, beta: float = 0.6,
    k: int = 4,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Kept tokens: flat index -> feature."""
    assert tokens.saliency is not None
    assert tokens.frame_embeds is not None
    x, saliency = tokens.features.double().numpy(), tokens.saliency.double().numpy()
    N = x.shape[1]
    R = int(N * r)
    ctx = int(d * R)
    sal = R - ctx
    kept: dict[int, np.ndarray] = {}
    for frames in oracle_segments(tokens.frame_embeds.double().numpy(), c, tau):
        others = {}
        for t in frames:
            best = sorted(range(N), key=lambda n: (-saliency[t, n], n))
            kept.update({t * N + n: x[t, n] for n in best[:sal]})
            others[t] = sorted(best[sal:])
        anchor_frames = frames[::-1][::p]
        for t in anchor_frames:
            count = min(ctx * len(frames) // len(anchor_frames), N - sal)
            if count == 0:
                continue
            centres = [others[t][i] for i in oracle_centres(x[t, others[t]], count, k)]
            members: dict[int, list[np.ndarray]] = {n: [] for n in centres}
            for u in frames:
                for n in others[u]:
                    if u == t and n in members:
                        members[n].append(x[t, n])
                    else:
                        members[max(centres, key=lambda a: cosine(x[u, n], x[t, a]))].append(x[u, n])
            for n, rows in members.items():
                w = max(1 / (len(rows) + 1), beta)
                kept[t * N + n] = w * x[t, n] + (1 - w) * np.mean(rows, axis=0)
    return kept


def oracle_of_segments(
    tokens: VisualTokens, r: float, *, ignore: float | None = None, mean: bool = False, c: int = 8, tau: float = 0.9,
    d: float = 0.4, p: int = 4, beta: float = 0.6,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Kept tokens by the rule for LLaVA-Video; with `ignore` and `mean` by that for Qwen2.5-VL."""
    assert tokens.saliency is not None
    assert tokens.frame_embeds is not None
    x, saliency = tokens.features.double().numpy(), tokens.saliency.double().numpy()
    N, R = x.shape[1], int(x.shape[1] * r)
    vectors = x.mean(1) if mean else tokens.frame_embeds.double().numpy()
    kept: dict[int, np.ndarray] = {}
    for frames in oracle_segments(vectors, c, tau):
        valid = [t for t in frames if ignore is None or t == frames[-1] or cosine(vectors[t], vectors[t + 1]) < ignore]
        anchor_frames = sorted(valid[::-1][::p])
        seg_ctx = max(int(R * len(frames) * d), 0 if ignore is None else 1)
        seg_sal = R * len(frames) - seg_ctx
        num_salient, num_context = dict.fromkeys(frames, 0), dict.fromkeys(frames, 0)
        for i, t in enumerate(reversed(anchor_frames)):
            share = seg_ctx // len(anchor_frames) + (i < seg_ctx % len(anchor_frames))
            num_context[t] = min(share, N if ignore is None else N // 2)
        for i, t in enumerate(valid):
            share = seg_sal // len(valid) + (i < seg_sal % len(valid))
            num_salient[t] = min(share, N - num_context[t])
        others = {}
        for t in frames:
            best = sorted(range(N), key=lambda n: (-saliency[t, n], n))
            kept.update({t * N + n: x[t, n] for n in best[: num_salient[t]]})
            others[t] = sorted(best[num_salient[t] :])
        for t in anchor_frames:
            if num_context[t] == 0:
                continue
            centres = [others[t][i] for i in oracle_centres(x[t, others[t]], num_context[t], 4)]
            members: dict[int, list[np.ndarray]] = {n: [] for n in centres}
            for u in frames:
                for n in others[u]:
                    if not (u == t and n in centres):
                        members[max(centres, key=lambda a: cosine(x[u, n], x[t, a]))].append(x[u, n])
            for n, rows in members.items():
                w = max(1 / (len(rows) + 1), beta)
                kept[t * N + n] = w * x[t, n] + (1 - w) * np.mean(rows, axis=0) if rows else x[t, n]
    return kept


def check(pruned: PrunedTokens, expected: dict[int, np.ndarray]) -> None:
    assert pruned.indices.tolist() == sorted(expected)
    rows = torch.tensor(np.array([expected[i] for i in sorted(expected)]), dtype=torch.float32)
    torch.testing.assert_close(pruned.features, rows, rtol=1e-4, atol=1e-5)


class TestAgainstLoops:
    @pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.5, 0.8])
    def test_ratios(self, tokens: VisualTokens, ratio: float) -> None:
        check(FastVidPruner(retention_ratio=ratio)(tokens), oracle(tokens, ratio))

    @pytest.mark.parametrize(
        ("options", "letters"),
        [
            ({"min_segments": 2, "segment_threshold": 0.2}, {"c": 2, "tau": 0.2}),
            ({"min_segments": 1, "segment_threshold": -1.0}, {"c": 1, "tau": -1}),
            ({"context_ratio": 1.0, "anchor_stride": 2}, {"d": 1.0, "p": 2}),
            ({"context_ratio": 0.0}, {"d": 0.0}),
            ({"merge_weight": 0.9, "num_neighbors": 7}, {"beta": 0.9, "k": 7}),
        ],
        ids=str,
    )
    def test_options(self, tokens: VisualTokens, options: dict[str, Any], letters: dict[str, Any]) -> None:
        check(FastVidPruner(retention_ratio=0.25, **options)(tokens), oracle(tokens, 0.25, **letters))


class TestCounts:
    @pytest.mark.parametrize(("ratio", "single", "uneven"), [(0.10, 608, 602), (0.15, 928, 922), (0.20, 1248, 1242)])
    def test_at_32_frames_of_196(self, ratio: float, single: int, uneven: int) -> None:
        assert len(FastVidPruner(retention_ratio=ratio)(with_segments([1] * 32)).indices) == single
        assert len(FastVidPruner(retention_ratio=ratio)(with_segments([4] * 8)).indices) == single
        pruner = FastVidPruner(retention_ratio=ratio, min_segments=7)
        assert len(pruner(with_segments([5] * 6 + [2])).indices) == uneven

    @pytest.mark.parametrize(("ratio", "count"), [(0.10, 1024), (0.15, 1600), (0.20, 2112)])
    def test_at_64_frames_of_169(self, ratio: float, count: int) -> None:
        assert len(FastVidPruner(retention_ratio=ratio)(with_segments([1] * 64, N=169)).indices) == count

    @pytest.mark.parametrize("ratio", [0.10, 0.15, 0.20])
    def test_exact(self, ratio: float) -> None:
        pruned = FastVidPruner(retention_ratio=ratio, exact_budget=True)(with_segments([5] * 6 + [1, 1]))
        assert len(pruned.indices) == round(ratio * 6272)

    def test_exact_loses_no_remainders(self) -> None:
        """A segment of 5 frames of 20 has 2 anchor frames: of 30 tokens 12 are anchors, 18 salient."""
        pruner = FastVidPruner(retention_ratio=0.3, exact_budget=True, min_segments=2)
        pruned = pruner(with_segments([5, 5], N=20))
        assert (pruned.indices // 20).bincount().tolist() == [4 + 6, 4, 4, 3, 3 + 6] * 2

    @pytest.mark.parametrize("ratio", [0.6, 0.9, 0.99])
    def test_exact_with_more_anchors_than_room(self, ratio: float) -> None:
        pruner = FastVidPruner(retention_ratio=ratio, exact_budget=True, min_segments=1)
        counts = (pruner(with_segments([9], N=30)).indices // 30).bincount()
        assert counts.sum() == round(ratio * 270)
        assert counts.max() == 30

    def test_anchors_are_limited_to_the_tokens_there_are(self) -> None:
        pruned = FastVidPruner(retention_ratio=0.6, min_segments=1)(with_segments([8], N=20))  # 8 + 4 per frame
        assert (pruned.indices // 20).bincount().tolist() == [8, 8, 8, 20, 8, 8, 8, 20]  # 16 anchors for 12 positions

    @pytest.mark.parametrize(("ratio", "per_frame"), [(1e-6, 1), (0.05, 1), (0.1, 2), (0.15, 3)])
    def test_few_tokens(self, ratio: float, per_frame: int) -> None:
        pruned = FastVidPruner(retention_ratio=ratio)(with_segments([1] * 9, N=20))
        assert len(pruned.indices) == 9 * per_frame

    @pytest.mark.parametrize("T", [1, 2, 7])
    def test_fewer_frames_than_segments(self, T: int) -> None:
        pruned = FastVidPruner(retention_ratio=0.25)(with_segments([T], N=20))
        assert (pruned.indices // 20).bincount(minlength=T).tolist() == [5] * T


class TestRuleOfSegments:
    """The releases for LLaVA-Video and Qwen2.5-VL."""

    QWEN: ClassVar[dict[str, Any]] = {"duplicate_threshold": 0.95, "frame_vector": "mean"}

    @pytest.mark.parametrize("ratio", [0.05, 0.1, 0.27, 0.6])
    def test_llava_video_against_loops(self, tokens: VisualTokens, ratio: float) -> None:
        pruner = FastVidPruner(retention_ratio=ratio, rule="segment")
        check(pruner(tokens), oracle_of_segments(tokens, ratio))

    @pytest.mark.parametrize("ratio", [0.1, 0.27, 0.6])
    @pytest.mark.parametrize("min_segments", [1, 3])
    def test_qwen_against_loops(self, tokens: VisualTokens, ratio: float, min_segments: int) -> None:
        similarity = sorted([-1, 1, *(cosine(a, b) for a, b in pairwise(tokens.features.double().mean(1).numpy()))])
        middle = sum(similarity[len(similarity) // 2 - 1 :][:2]) / 2  # about half of the frames are repeated
        options = {"min_segments": min_segments, "segment_threshold": -1.0, **self.QWEN, "duplicate_threshold": middle}
        pruner = FastVidPruner(retention_ratio=ratio, rule="segment", **options)
        check(pruner(tokens), oracle_of_segments(tokens, ratio, c=min_segments, tau=-1, ignore=middle, mean=True))

    @pytest.mark.parametrize(("ratio", "count"), [(0.10, 1024), (0.15, 1600), (0.20, 2112)])
    @pytest.mark.parametrize("lengths", [[1] * 64, [5, 7, 9, 11, 13, 3, 6, 10], [63, 1]], ids=str)
    def test_counts_at_64_frames_of_169(self, ratio: float, count: int, lengths: list[int]) -> None:
        pruner = FastVidPruner(retention_ratio=ratio, rule="segment", min_segments=len(lengths))
        assert len(pruner(with_segments(lengths, N=169)).indices) == count  # nothing is lost

    def test_remainders_go_to_the_earlier_frames_and_the_later_anchor_frames(self) -> None:
        """Segments of 6 frames of 5 tokens: 12 of 30 for anchors in 2 frames, 18 salient. Of 5 frames: 10 and 15."""
        pruner = FastVidPruner(retention_ratio=0.25, rule="segment", min_segments=2)
        counts = (pruner(with_segments([6, 5], N=20)).indices // 20).bincount().tolist()
        assert counts == [3, 3 + 6, 3, 3, 3, 3 + 6, 3 + 5, 3, 3, 3, 3 + 5]
        pruner = FastVidPruner(retention_ratio=0.15, rule="segment", min_segments=1)  # 15: 6 for 2 frames, 9 for 5
        assert (pruner(with_segments([5], N=20)).indices // 20).bincount().tolist() == [2 + 3, 2, 2, 2, 1 + 3]
        assert divided_counts(198, 0.4, 169, [True] * 6, 4, max_anchors=169) == [
            (20, 0), (20, 39), (20, 0), (20, 0), (20, 0), (19, 40),
        ]  # fmt: skip

    def test_salient_tokens_make_room_for_anchors(self) -> None:
        """60 tokens for the only open frame: of 36 salient ones 24 fit beside 24 anchors, half of the frame."""
        counts = divided_counts(60, 0.4, 48, [False] * 4 + [True], 4, min_anchors=1, max_anchors=24)
        assert counts == [(0, 0)] * 4 + [(24, 24)]

    def test_the_rule_for_qwen_has_an_anchor_in_every_segment(self) -> None:
        """Of 2 tokens per frame, 0.8 would be an anchor."""
        tokens = with_segments([1] * 9, N=20)
        for options, salient in ((self.QWEN, 1), ({}, 2)):
            pruned = FastVidPruner(retention_ratio=0.1, rule="segment", merge_weight=0.0, **options)(tokens)
            same = (pruned.features == tokens.features.flatten(0, 1)[pruned.indices]).all(1)
            assert same.view(9, 2).sum(1).tolist() == [salient] * 9

    def test_repeated_frames_get_nothing_and_cap_what_others_get(self) -> None:
        """Of 8 equal frames the last gets all 40 tokens: 16 anchors, of which 10 may be, and 10 salient ones fit."""
        x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1)
        tokens = dataclasses.replace(with_segments([8], N=20), features=x)
        pruner = FastVidPruner(retention_ratio=0.25, rule="segment", min_segments=1, merge_weight=0.0, **self.QWEN)
        pruned = pruner(tokens)
        assert pruned.indices.tolist() == list(range(140, 160))
        assert (pruned.features == x[0]).all(1).sum() == 10
        pruner = dataclasses.replace(pruner, retention_ratio=0.1)  # 16 tokens: 6 anchors
        assert pruner(tokens).indices.shape == (16,)
        pruner = dataclasses.replace(pruner, context_ratio=1.0)  # 16 anchors, but half a frame is the most
        assert pruner(tokens).indices.shape == (10,)

    def test_repeated_frames_are_absorbed(self) -> None:
        x = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0)).repeat(8, 1, 1)
        tokens = dataclasses.replace(with_segments([8], N=20), features=x)
        pruner = FastVidPruner(retention_ratio=0.1, rule="segment", min_segments=1, **self.QWEN)
        pruned = pruner(tokens)
        assert pruned.assignment is not None
        assert (pruned.assignment >= 0).all()

    @pytest.mark.parametrize("ratio", [1e-6, 0.1, 0.3, 0.9, 0.99])
    def test_exact_budget_with_repeated_frames(self, ratio: float) -> None:
        tokens = dataclasses.replace(with_segments([8], N=20), features=torch.ones(8, 20, 4))
        pruner = FastVidPruner(retention_ratio=ratio, rule="segment", exact_budget=True, **self.QWEN)
        assert len(pruner(tokens).indices) == max(1, round(ratio * 160))

    def test_an_anchor_is_no_part_of_the_mean(self) -> None:
        x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [1.2, 0.0], [1.1, 0.0]]])
        tokens = VisualTokens(
            features=x, grid=(2, 2), timestamps_s=torch.zeros(1), saliency=torch.tensor([[0.4, 0.2, 0.2, 0.2]])
        )
        pruned = FastVidPruner(retention_ratio=0.5, context_ratio=0.5, merge_weight=0.5, rule="segment")(tokens)
        assert pruned.indices.tolist() == [0, 3]
        torch.testing.assert_close(pruned.features, torch.tensor([[9.0, 9.0], [0.5 * 1.1 + 0.25 * 2.2, 0.0]]))

    def test_frame_vector_mean_leaves_frame_embeds_alone(self) -> None:
        pruner = FastVidPruner(frame_vector="mean")
        assert pruner.wants == Signal.SALIENCY
        tokens = video_tokens(frames=12)
        bare = dataclasses.replace(tokens, frame_embeds=None)
        assert torch.equal(pruner(tokens).indices, pruner(bare).indices)

    @pytest.mark.usefixtures("unchecked_annotations")
    def test_repeated_frames_belong_to_this_rule(self) -> None:
        with pytest.raises(OptionError, match="duplicate_threshold is a part of rule 'segment', got rule 'onevision'"):
            build_pruner("fastvid", duplicate_threshold=0.95)


class TestByHand:
    def test_one_frame(self) -> None:
        """The salient token stays as it is; one anchor takes the other three."""
        x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [1.2, 0.0], [1.1, 0.0]]])
        tokens = VisualTokens(
            features=x, grid=(2, 2), timestamps_s=torch.zeros(1), saliency=torch.tensor([[0.4, 0.2, 0.2, 0.2]])
        )
        pruned = FastVidPruner(retention_ratio=0.5, context_ratio=0.5)(tokens)
        assert pruned.indices.tolist() == [0, 3]
        torch.testing.assert_close(pruned.features, torch.tensor([[9.0, 9.0], [1.1, 0.0]]))
        assert pruned.assignment is not None
        assert pruned.assignment.tolist() == [0, 1, 1, 1]

    def test_anchor_frames_count_back_from_the_last(self) -> None:
        tokens = with_segments([6], N=20)
        pruned = FastVidPruner(retention_ratio=0.25, min_segments=1)(tokens)  # 3 salient, 2 context per frame
        assert (pruned.indices // 20).bincount().tolist() == [3, 3 + 6, 3, 3, 3, 3 + 6]

    def test_assignment_goes_to_the_next_anchor_frame(self) -> None:
        pruned = FastVidPruner(retention_ratio=0.25, min_segments=1)(with_segments([6], N=20))
        assert pruned.assignment is not None
        assert (pruned.assignment >= 0).all()
        frames = (pruned.indices // 20)[pruned.assignment].view(6, 20)
        assert [sorted(set(row.tolist())) for row in frames] == [[0, 1], [1], [2, 5], [3, 5], [4, 5], [5]]

    def test_a_token_joins_anchors_of_every_anchor_frame(self) -> None:
        tokens = with_segments([6], N=20)
        features = tokens.features.clone().requires_grad_()
        pruner = FastVidPruner(retention_ratio=0.25, min_segments=1)
        pruned = pruner(dataclasses.replace(tokens, features=features))
        early = (pruned.indices // 20 == 1) & (pruned.indices > 0)
        pruned.features[early].sum().backward()
        assert features.grad is not None
        reached = (features.grad[:, :, 0] != 0).sum(1)
        assert reached.tolist() == [17, 20, 17, 17, 17, 17]  # all but the salient ones of other frames

    def test_ties_go_to_the_lower_position(self) -> None:
        black = VisualTokens(
            features=torch.zeros(2, 20, 4), grid=(4, 5), timestamps_s=torch.arange(2.0), saliency=torch.ones(2, 20)
        )
        pruned = FastVidPruner(retention_ratio=0.25)(black)
        assert pruned.indices.tolist() == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24]
        assert pruned.assignment is not None
        assert pruned.assignment[:20].tolist() == [0, 1, 2, 3, 4] + [3] * 15

    def test_weight_one_leaves_every_row_its_own_token(self, tokens: VisualTokens) -> None:
        pruned = FastVidPruner(retention_ratio=0.3, merge_weight=1.0)(tokens)
        assert torch.equal(pruned.features, tokens.features.flatten(0, 1)[pruned.indices])

    def test_no_context_is_a_plain_top_k(self, tokens: VisualTokens) -> None:
        assert tokens.saliency is not None
        pruned = FastVidPruner(retention_ratio=0.25, context_ratio=0.0)(tokens)
        T, N = tokens.saliency.shape
        best = tokens.saliency.topk(int(N * 0.25), dim=1).indices + torch.arange(T)[:, None] * N
        assert pruned.indices.tolist() == sorted(best.flatten().tolist())


class TestConfiguration:
    def test_wants_frame_embeds_without_insisting(self) -> None:
        pruner = FastVidPruner(retention_ratio=0.2)
        assert pruner.wants == Signal.SALIENCY | Signal.FRAME_EMBEDS
        tokens = video_tokens(frames=12)
        bare = dataclasses.replace(tokens, frame_embeds=None)
        means = dataclasses.replace(tokens, frame_embeds=tokens.features.mean(1))
        assert torch.equal(pruner(bare).indices, pruner(means).indices)

    @pytest.mark.usefixtures("unchecked_annotations")
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("min_segments", 0),
            ("segment_threshold", 90),
            ("context_ratio", -0.1),
            ("anchor_stride", 0),
            ("merge_weight", math.nan),
            ("num_neighbors", 1),
            ("duplicate_threshold", 95),
        ],
    )
    def test_options_out_of_range_are_refused(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError, match=f"^{option} must lie in .* got {value!r}"):
            build_pruner("fastvid", **{option: value})

    @pytest.mark.parametrize("where", ["features", "saliency", "frame_embeds"])
    @pytest.mark.parametrize("frames", [1, 4])
    def test_broken_values_are_refused(self, where: str, frames: int) -> None:
        tokens = video_tokens(frames=frames, scenes=1)
        getattr(tokens, where)[-1, 5] = torch.nan
        with pytest.raises(ValueError, match="contain NaN or infinity"):
            FastVidPruner()(tokens)
