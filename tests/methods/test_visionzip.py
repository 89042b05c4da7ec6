"""tango.methods.visionzip against plain loops, cases by hand, and the signals that models supply for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import tango
from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError
from tango.methods.visionzip import VisionZipPruner
from tango.models.base import adapter_class
from tango.profiling import StageTimer
from tests import tiny, tiny_qwen
from tests.synthetic import video_tokens


def by_loops(tokens: VisualTokens, budgets: list[int], context: list[int]) -> tuple[list[int], list[list[float]]]:
    """Kept flat indices and their features, frame by frame as the steps of the paper and its ports say."""
    assert tokens.saliency is not None
    assert tokens.keys is not None
    T, N, _ = tokens.features.shape
    x, s, keys = (part.double().tolist() for part in (tokens.features, tokens.saliency, tokens.keys))

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    kept: dict[int, list[float]] = {}
    for t in range(T):
        ranking = sorted(range(N), key=lambda i: (-s[t][i], i))
        dominant = ranking[: budgets[t] - context[t]]
        kept |= {t * N + i: x[t][i] for i in dominant}
        if context[t] == 0:
            continue
        rest = [i for i in range(N) if i not in dominant]
        step = max(1, len(rest) // context[t])
        anchors = rest[::step][: context[t]]
        members: dict[int, list[int]] = {a: [] for a in anchors}
        for i in rest:
            if i not in anchors:
                members[max(anchors, key=lambda a: cosine(keys[t][i], keys[t][a]))].append(i)
        for a in anchors:
            kept[t * N + a] = [
                v + (sum(x[t][i][c] for i in members[a]) / len(members[a]) if members[a] else 0)
                for c, v in enumerate(x[t][a])
            ]
    order = sorted(kept)
    return order, [kept[i] for i in order]


def assert_equals(pruned: PrunedTokens, expected: tuple[list[int], list[list[float]]]) -> None:
    assert pruned.indices.tolist() == expected[0]
    torch.testing.assert_close(pruned.features, torch.tensor(expected[1]), rtol=1e-5, atol=1e-5)


def video(x: Tensor, saliency: Tensor, keys: Tensor) -> VisualTokens:
    grid = (1, x.shape[1])
    return VisualTokens(features=x, grid=grid, timestamps_s=torch.arange(float(len(x))), saliency=saliency, keys=keys)


class TestOracle:
    @pytest.mark.parametrize(("ratio", "budget"), [(0.1, 4), (0.3, 12), (0.75, 30), (0.99, 40)])
    @pytest.mark.parametrize("context_ratio", [0.0, 0.05, 0.2])
    def test_share_of_the_tokens(self, ratio: float, budget: int, context_ratio: float) -> None:
        tokens = video_tokens(1, frames=5, grid=(5, 8), dim=12)
        context = min(round(context_ratio * 40), budget // 2)
        pruned = VisionZipPruner(retention_ratio=ratio, context_ratio=context_ratio)(tokens)
        assert_equals(pruned, by_loops(tokens, [budget] * 5, [context] * 5))

    @pytest.mark.parametrize(("ratio", "context"), [(0.1, 1), (0.3, 3), (0.5, 5)])
    def test_share_of_the_budget(self, ratio: float, context: int) -> None:
        tokens = video_tokens(2, frames=3, grid=(5, 8), dim=12)
        pruned = VisionZipPruner(retention_ratio=ratio, context_ratio=0.25, context_base="budget")(tokens)
        assert_equals(pruned, by_loops(tokens, [round(40 * ratio)] * 3, [context] * 3))

    def test_exact_budget(self) -> None:
        tokens = video_tokens(3, frames=5, grid=(3, 7), dim=12)
        pruned = VisionZipPruner(retention_ratio=0.4, context_ratio=0.15, exact_budget=True)(tokens)
        assert len(pruned.indices) == 42
        assert_equals(pruned, by_loops(tokens, [9, 9, 8, 8, 8], [3] * 5))


class TestCounts:
    """Of 196 tokens per frame, as in section 5.1 of arXiv:2604.09547 and its two readings."""

    @staticmethod
    def counts(**options: Any) -> tuple[int, set[int]]:
        """Tokens in all, and merged ones per frame."""
        x = torch.ones(32, 196, 2)
        saliency = torch.linspace(2, 1, 196).expand(32, -1)
        pruned = VisionZipPruner(**options)(video(x, saliency, x))
        merged = (pruned.features[:, 0] > 1.5).view(32, -1).sum(1)
        return len(pruned.indices), set(merged.tolist())

    @pytest.mark.parametrize(("ratio", "total"), [(0.1, 640), (0.15, 960), (0.2, 1280)])
    def test_context_is_a_share_of_all_tokens(self, ratio: float, total: int) -> None:
        pruner = VisionZipPruner(retention_ratio=ratio)
        assert pruner._num_context(total // 32, 196) == 10
        assert self.counts(retention_ratio=ratio)[0] == total

    @pytest.mark.parametrize(("ratio", "total", "context"), [(0.1, 640, 1), (0.15, 960, 2), (0.2, 1280, 2)])
    def test_context_is_a_share_of_the_budget(self, ratio: float, total: int, context: int) -> None:
        pruner = VisionZipPruner(retention_ratio=ratio, context_base="budget")
        assert pruner._num_context(total // 32, 196) == context
        assert self.counts(retention_ratio=ratio, context_base="budget") == (total, {1})  # all go to the first anchor

    @pytest.mark.parametrize(("ratio", "total"), [(0.1, 627), (0.15, 941), (0.2, 1254)])
    def test_exact_budget(self, ratio: float, total: int) -> None:
        tokens = video_tokens(frames=32, grid=(14, 14), dim=4)
        assert len(VisionZipPruner(retention_ratio=ratio, exact_budget=True)(tokens).indices) == total

    @pytest.mark.parametrize(
        ("ratio", "N", "dominant", "context"),
        [
            (0.1, 196, 9, 9),  # 9.8 and 9.8
            (0.15, 196, 19, 9),
            (0.2, 196, 29, 9),
            (0.7, 196, 127, 9),
            (0.15, 200, 20, 10),  # though 0.15 - 0.05 is just below 0.1 in floating point
            (0.08, 196, 7, 7),  # at most half
            (0.001, 196, 1, 0),
        ],
    )
    def test_both_parts_rounded_down(self, ratio: float, N: int, dominant: int, context: int) -> None:
        tokens = video_tokens(4, frames=3, grid=(1, N), dim=6)
        pruned = VisionZipPruner(retention_ratio=ratio, rounding="down")(tokens)
        assert_equals(pruned, by_loops(tokens, [dominant + context] * 3, [context] * 3))

    def test_of_the_budget_both_parts_are_rounded_down_by_themselves(self) -> None:
        """Of 63 tokens 7.56 and 5.04 are 7 and 5; 0.4 of the 12 that are kept would be 4."""
        pruner = VisionZipPruner(retention_ratio=0.2, context_ratio=0.4, context_base="budget", rounding="down")
        assert (pruner._budget(63), pruner._num_context(12, 63)) == (12, 5)

    @pytest.mark.parametrize("budget", range(1, 25))
    def test_context_takes_at_most_half(self, budget: int) -> None:
        assert VisionZipPruner()._num_context(budget, 196) == min(10, budget // 2)


class TestByHand:
    # Token 1 is the most salient; of 0, 2, 3, 4, 5 the anchors are 0 and 3; 2 and 5 have the key of 3, 4 that of 0.
    TOKENS = video(
        torch.tensor([[[1.0, 0], [50, 50], [4, 2], [2, 2], [0, 8], [6, 0]]]),
        torch.tensor([[0.1, 0.5, 0.1, 0.1, 0.1, 0.1]]),
        torch.tensor([[[1.0, 0], [1, 1], [0, 2], [0, 1], [3, 0], [0, 9]]]),
    )
    OPTIONS: ClassVar[dict[str, float]] = {"retention_ratio": 4 / 6, "context_ratio": 2 / 6}

    def test_others_are_added_to_the_anchor_with_the_nearest_key(self) -> None:
        pruned = VisionZipPruner(**self.OPTIONS)(self.TOKENS)  # dominant: 1, and of the equal others the first, 0
        assert pruned.indices.tolist() == [0, 1, 2, 4]
        assert pruned.features.tolist() == [[1, 0], [50, 50], [4 + 4, 2 + 1], [0, 8]]
        assert pruned.assignment is not None
        assert pruned.assignment.tolist() == [0, 1, 2, 2, 3, 2]

    def test_means(self) -> None:
        pruned = VisionZipPruner(**self.OPTIONS, context_merge="mean")(self.TOKENS)
        assert pruned.indices.tolist() == [0, 1, 2, 4]
        torch.testing.assert_close(pruned.features, torch.tensor([[1.0, 0], [50, 50], [4, 4 / 3], [0, 8]]))

    def test_without_context_the_others_are_dropped(self) -> None:
        pruned = VisionZipPruner(retention_ratio=0.5, context_ratio=0.0)(self.TOKENS)
        assert pruned.indices.tolist() == [0, 1, 2]
        assert pruned.features.tolist() == [[1, 0], [50, 50], [4, 2]]
        assert pruned.assignment is not None
        assert pruned.assignment.tolist() == [0, 1, 2, -1, -1, -1]

    def test_of_equal_keys_the_first_anchor_gets_all(self) -> None:
        x = torch.full((2, 20, 5), 0.3)
        pruned = VisionZipPruner(retention_ratio=0.4, context_ratio=0.2)(video(x, torch.ones(2, 20), x))
        frame = [0, 1, 2, 3, 4, 8, 12, 16]
        assert pruned.indices.tolist() == frame + [20 + i for i in frame]
        assert pruned.assignment is not None
        assert pruned.assignment.view(2, 20)[0].tolist() == [0, 1, 2, 3] + [
            4 if i not in (8, 12, 16) else 3 + i // 4 for i in range(4, 20)
        ]

    def test_sinks_are_not_treated_specially(self) -> None:
        tokens = video_tokens(sinks=(3, 7))
        unmarked = dataclasses.replace(tokens, sink_positions=())
        assert torch.equal(VisionZipPruner()(tokens).indices, VisionZipPruner()(unmarked).indices)


class TestErrors:
    @pytest.mark.parametrize("name", ["features", "saliency", "keys"])
    def test_broken_values(self, name: str) -> None:
        tokens = video_tokens()
        getattr(tokens, name)[1, 5] = torch.nan
        with pytest.raises(ValueError, match="features, saliency or keys contain NaN or infinity"):
            VisionZipPruner()(tokens)

    @pytest.mark.usefixtures("unchecked_annotations")
    @pytest.mark.parametrize(
        ("option", "value"),
        [("context_ratio", -0.1), ("context_ratio", 1.1), ("context_base", "all"), ("context_merge", "max")],
    )
    def test_options_out_of_range(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError, match=f"^{option} must .*got {value!r}"):
            VisionZipPruner(**{option: value})


class TestModels:
    @staticmethod
    def encode(wants: Signal) -> tuple[Any, Tensor, list[VisualTokens]]:
        model = tiny.llava_onevision()
        adapter = adapter_class("llava_onevision")(model, saliency="attn")
        pixels = torch.stack([tiny.clip(1), tiny.clip(2)])
        with torch.no_grad():
            return adapter, pixels, adapter.encode_videos({"pixel_values_videos": pixels}, wants, StageTimer()).videos

    def test_keys_are_those_of_the_last_used_block(self) -> None:
        adapter, pixels, videos = self.encode(Signal.KEYS)
        tower, recorded = adapter.model.model.vision_tower, []
        attention = getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn
        handle = attention.k_proj.register_forward_hook(lambda _m, _a, output: recorded.append(output))
        with torch.no_grad():
            tower(pixels.flatten(0, 1))
        handle.remove()
        per_head = recorded[0].unflatten(-1, (attention.num_heads, -1))
        expected = adapter.pool(sum(per_head[:, :, head] for head in range(attention.num_heads)) / attention.num_heads)
        assert [v.keys.shape for v in videos] == [(6, 16, attention.head_dim)] * 2
        torch.testing.assert_close(torch.cat([v.keys for v in videos]), expected)
        assert videos[0].saliency is None

    def test_keys_are_computed_only_if_wanted(self) -> None:
        _, _, videos = self.encode(Signal.SALIENCY)
        assert videos[0].keys is None
        assert videos[0].saliency is not None

    def test_both_signals_at_once_equal_each_alone(self) -> None:
        _, _, both = self.encode(Signal.SALIENCY | Signal.KEYS)
        _, _, keys = self.encode(Signal.KEYS)
        _, _, saliency = self.encode(Signal.SALIENCY)
        assert torch.equal(both[1].keys, keys[1].keys)
        assert torch.equal(both[1].saliency, saliency[1].saliency)

    def test_runs_in_a_model(self) -> None:
        model = tiny.llava_onevision()
        ids = tiny.prompt("Look: ", 6, " What?")
        inputs = {**tiny.batch(ids), "pixel_values_videos": tiny.clip(1)[None]}
        with tango.prune(model, "visionzip", retention_ratio=0.25, saliency="attn") as pruning:
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert pruning.stats.tokens_after == 6 * 4

    @pytest.mark.parametrize("family", tiny_qwen.FAMILIES)
    def test_prunes_qwen_models(self, family: str) -> None:
        inputs = tiny_qwen.inputs(family, ("Look: ", tiny_qwen.WIDE, " What?"))
        with tango.prune(tiny_qwen.model(family), "visionzip", retention_ratio=0.5, context_ratio=0.2) as pruning:
            pruning.model.generate(**inputs, max_new_tokens=2, do_sample=False)
        frames, grid = pruning.stats.videos[0].frames, pruning.stats.videos[0].grid
        assert pruning.stats.tokens_after == frames * -(-grid[0] * grid[1] // 2)
