"""tango.methods.vidcom2 against plain loops, cases by hand, and the counts of the release."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tango.containers import VisualTokens
from tango.errors import OptionError
from tango.methods.vidcom2 import VidCom2Pruner
from tests.synthetic import video_tokens


def video(x: Tensor) -> VisualTokens:
    return VisualTokens(features=x, grid=(1, x.shape[1]), timestamps_s=torch.arange(float(len(x))))


def distance(a: list[float], b: list[float]) -> float:
    return math.dist(a, b) ** 2


def kernels(squared: float) -> float:
    return sum(math.exp(-squared / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def by_loops(x: Tensor, ratio: float) -> list[int]:
    """Kept flat indices, as the steps of the paper and its release say, in double precision."""
    T, N, D = x.shape
    rows = x.double().flatten(0, 1).tolist()
    middle = mean_of(rows)
    variance = [sum((row[c] - middle[c]) ** 2 for row in rows) / len(rows) for c in range(D)]
    channels = sorted(range(D), key=lambda c: (variance[c], c))[: D // 2]
    units = []
    for row in rows:
        part = [row[c] for c in channels]
        units.append([v / math.hypot(*part) for v in part])
    of_video = mean_of(units)
    V, F = [], []
    for t in range(T):
        frame = units[t * N : (t + 1) * N]
        of_frame = mean_of(frame)
        V.append([kernels(distance(u, of_video)) for u in frame])
        F.append([kernels(distance(u, of_frame)) for u in frame])
    u = [-sum(values) / N for values in V]
    e = [math.exp((value - max(u)) / 0.01) for value in u]
    kept = []
    for t in range(T):
        p = e[t] / sum(e)
        k = max(1, round(min(1.0, ratio * (1 + p - 1 / T)) * N))
        ranking = sorted(range(N), key=lambda i: V[t][i] + F[t][i])
        kept += sorted(t * N + i for i in ranking[:k])
    return kept


class TestOracle:
    @pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.5, 0.9])
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_plain_loops(self, seed: int, ratio: float) -> None:
        tokens = video_tokens(seed, frames=7, grid=(4, 5), dim=26, scenes=3)
        assert VidCom2Pruner(retention_ratio=ratio)(tokens).indices.tolist() == by_loops(tokens.features, ratio)

    @pytest.mark.parametrize("T", [1, 2])
    def test_short_videos(self, T: int) -> None:
        tokens = video_tokens(3, frames=T, scenes=1, grid=(3, 7), dim=25)
        assert VidCom2Pruner(retention_ratio=0.3)(tokens).indices.tolist() == by_loops(tokens.features, 0.3)


class TestCounts:
    @staticmethod
    def kept(x: Tensor, ratio: float, *, exact_budget: bool = False) -> list[int]:
        pruned = VidCom2Pruner(retention_ratio=ratio, exact_budget=exact_budget)(video(x))
        return (pruned.indices // x.shape[1]).bincount(minlength=len(x)).tolist()

    @staticmethod
    def one_odd_frame() -> Tensor:
        """32 frames of 196 like tokens; frame 5 shows something else."""
        x = torch.ones(32, 196, 8)
        x[5, :, :6] = -1
        return x

    @pytest.mark.parametrize(("ratio", "total"), [(0.1, 640), (0.15, 928), (0.2, 1248)])
    def test_frames_that_are_alike_share_evenly(self, ratio: float, total: int) -> None:
        assert self.kept(torch.ones(32, 196, 8), ratio) == [total // 32] * 32

    @pytest.mark.parametrize(("ratio", "odd", "total"), [(0.1, 39, 628), (0.15, 58, 926), (0.2, 77, 1255)])
    def test_one_odd_frame_takes_nearly_twice_its_share(self, ratio: float, odd: int, total: int) -> None:
        counts = self.kept(self.one_odd_frame(), ratio)
        assert counts[5] == odd
        assert sum(counts) == total
        assert len(set(counts[:5] + counts[6:])) == 1

    @pytest.mark.parametrize(("ratio", "total"), [(0.1, 627), (0.15, 941), (0.2, 1254)])
    @pytest.mark.parametrize("odd", [False, True])
    def test_exact_budget(self, ratio: float, total: int, odd: bool) -> None:
        x = self.one_odd_frame() if odd else torch.ones(32, 196, 8)
        counts = self.kept(x, ratio, exact_budget=True)
        assert sum(counts) == total
        off = [abs(a - b) for a, b in zip(counts, self.kept(x, ratio), strict=True)]
        assert max(off) <= 1

    def test_halves_are_rounded_to_even(self) -> None:
        assert self.kept(torch.ones(3, 20, 4), 0.125) == [2, 2, 2]  # 2.5 each
        assert self.kept(torch.ones(3, 20, 4), 0.175) == [4, 4, 4]  # 3.5 each

    def test_every_frame_keeps_at_least_one(self) -> None:
        assert self.kept(torch.ones(5, 4, 4), 1e-6) == [1] * 5

    def test_a_full_frame_keeps_no_more_than_it_has(self) -> None:
        x = torch.ones(4, 10, 8)
        x[2, :, :6] = -1
        assert self.kept(x, 0.8) == [6, 6, 10, 6]
        assert self.kept(x, 0.8, exact_budget=True) == [8, 7, 10, 7]

    def test_a_high_temperature_makes_frames_equal(self) -> None:
        pruned = VidCom2Pruner(retention_ratio=0.1, temperature=1e6)(video(self.one_odd_frame()))
        assert (pruned.indices // 196).bincount().tolist() == [20] * 32


class TestChoice:
    def test_the_odd_one_out_is_kept(self) -> None:
        x = torch.ones(2, 6, 4)
        x[0, 4, :2] = -1
        x[1, 2, :2] = -1
        assert VidCom2Pruner(retention_ratio=0.1, channel_ratio=1.0)(video(x)).indices.tolist() == [4, 8]

    def test_channels_that_vary_most_are_not_looked_at(self) -> None:
        x = torch.ones(1, 6, 4)
        x[0, 3, 0] = x[0, 3, 2] = 9.0  # much variance: token 3 stands out on channels that are left out
        x[0, 5, 1] = 1.5
        assert VidCom2Pruner(retention_ratio=0.1)(video(x)).indices.tolist() == [5]
        assert VidCom2Pruner(retention_ratio=0.1, channel_ratio=1.0)(video(x)).indices.tolist() == [3]

    def test_length_does_not_matter(self) -> None:
        tokens = video_tokens(dim=40)
        halved = dataclasses.replace(tokens, features=tokens.features / 2)
        assert torch.equal(VidCom2Pruner()(halved).indices, VidCom2Pruner()(tokens).indices)

    def test_kept_rows_are_untouched(self) -> None:
        tokens = video_tokens()
        pruned = VidCom2Pruner()(tokens)
        assert torch.equal(pruned.features, tokens.features.flatten(0, 1)[pruned.indices])

    def test_of_equal_tokens_the_first_are_kept(self) -> None:
        pruned = VidCom2Pruner(retention_ratio=0.3)(video(torch.full((2, 10, 6), 0.3)))
        assert pruned.indices.tolist() == [0, 1, 2, 10, 11, 12]

    @pytest.mark.parametrize("size", [1, 3])
    def test_blocks_change_nothing(self, cut_into_blocks: Callable[[int], None], size: int) -> None:
        tokens = video_tokens()
        whole = VidCom2Pruner()(tokens)
        cut_into_blocks(size)
        assert torch.equal(VidCom2Pruner()(tokens).indices, whole.indices)


class TestErrors:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_broken_features(self, value: float) -> None:
        tokens = video_tokens()
        tokens.features[1, 5, 2] = value
        with pytest.raises(ValueError, match="features contain NaN or infinity"):
            VidCom2Pruner()(tokens)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("temperature", 0), ("temperature", math.nan), ("channel_ratio", 0), ("channel_ratio", 1.5)],
    )
    def test_options_out_of_range(self, option: str, value: float) -> None:
        with pytest.raises(OptionError, match=f"^{option} must .*got {value}"):
            VidCom2Pruner(**{option: value})
