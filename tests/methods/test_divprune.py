"""tango.methods.divprune against plain loops, and cases by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tango.containers import VisualTokens
from tango.methods import divprune
from tango.methods.divprune import DivPrunePruner
from tango.ops.similarity import unit_cosines
from tests.synthetic import video_tokens


def video(x: Tensor) -> VisualTokens:
    return VisualTokens(features=x, grid=(1, x.shape[1]), timestamps_s=torch.arange(float(len(x))))


def directions(*degrees: float) -> VisualTokens:
    """One frame of two-dimensional tokens of different lengths that point into these directions."""
    angles = [math.radians(d) for d in degrees]
    return video(torch.tensor([[[(i + 1) * math.cos(a), (i + 1) * math.sin(a)] for i, a in enumerate(angles)]]))


def by_loops(x: Tensor, ratio: float) -> list[int]:
    """Kept flat indices: the whole distance matrix in double precision, all kept rows looked at in every step."""
    rows = x.double().flatten(0, 1).tolist()
    M = len(rows)

    def distance(a: list[float], b: list[float]) -> float:
        return 1 - sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    W = [[distance(a, b) for b in rows] for a in rows]
    second_smallest = [sorted(column)[1] for column in W]  # the smallest is the token itself
    kept = [max(range(M), key=lambda j: second_smallest[j])]
    while len(kept) < round(ratio * M):
        rest = [j for j in range(M) if j not in kept]
        kept.append(max(rest, key=lambda j: min(W[i][j] for i in kept)))
    return sorted(kept)


@pytest.fixture
def no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were too many tokens for a matrix of all cosines."""
    monkeypatch.setattr(divprune, "MAX_BYTES", 0)


class TestOracle:
    @pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.6, 0.95])
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_plain_loops(self, seed: int, ratio: float) -> None:
        tokens = video_tokens(seed, frames=4, grid=(4, 5), dim=20)
        assert DivPrunePruner(retention_ratio=ratio)(tokens).indices.tolist() == by_loops(tokens.features, ratio)

    @pytest.mark.usefixtures("no_matrix")
    @pytest.mark.parametrize("ratio", [0.05, 0.2, 0.95])
    def test_without_a_matrix_too(self, ratio: float) -> None:
        self.test_equals_plain_loops(3, ratio)

    @pytest.mark.parametrize("ratio", [0.1, 0.9])
    def test_duplicates_without_a_matrix(self, monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
        tokens = video_tokens(frames=5, grid=(8, 9))
        tokens.features[3:] = 2 * tokens.features[:2]
        whole = DivPrunePruner(retention_ratio=ratio)(tokens)
        monkeypatch.setattr(divprune, "MAX_BYTES", 0)
        assert torch.equal(DivPrunePruner(retention_ratio=ratio)(tokens).indices, whole.indices)

    @pytest.mark.parametrize("M", [90, 110])
    def test_a_matrix_only_within_the_bound(self, monkeypatch: pytest.MonkeyPatch, M: int) -> None:
        monkeypatch.setattr(divprune, "MAX_BYTES", 4 * 100**2)
        multiplied = []
        monkeypatch.setattr(divprune, "unit_self_cosines", lambda x: multiplied.append(len(x)) or unit_cosines(x, x))
        DivPrunePruner()(video(torch.randn(1, M, 4)))
        assert multiplied == [M] * (M <= 100)

    @pytest.mark.parametrize("M", [100, 20_000])
    def test_the_host_waits_for_nothing(self, M: int) -> None:
        """Meta tensors have no values: reading one fails."""
        picks = divprune._max_min_picks(torch.empty(M, 8, device="meta"), 5)
        assert picks.shape == (5,)

    @pytest.mark.parametrize("size", [1, 7])
    def test_blocks_change_nothing(self, cut_into_blocks: Callable[[int], None], size: int) -> None:
        tokens = video_tokens(frames=3)
        whole = DivPrunePruner()(tokens)
        cut_into_blocks(size)
        assert torch.equal(DivPrunePruner()(tokens).indices, whole.indices)


class TestByHand:
    TOKENS = directions(0, 5, 90, 95, 200)  # the last has its nearest other 105 degrees away

    @pytest.mark.parametrize(
        ("k", "kept"),
        [
            (1, [4]),
            (2, [1, 4]),  # 165 degrees from 200; token 0 is 160 away
            (3, [1, 3, 4]),  # 90 degrees from 5, 105 from 200; token 2 is 85 from 5
            (4, [0, 1, 3, 4]),  # both others are 5 degrees from a kept one: the first
        ],
    )
    def test_picks(self, k: int, kept: list[int]) -> None:
        assert DivPrunePruner(retention_ratio=k / 5)(self.TOKENS).indices.tolist() == kept

    def test_length_does_not_matter(self) -> None:
        tokens = video_tokens()
        doubled = dataclasses.replace(tokens, features=tokens.features * 2)
        assert torch.equal(DivPrunePruner()(doubled).indices, DivPrunePruner()(tokens).indices)

    def test_every_direction_is_kept_before_any_second_time(self) -> None:
        x = torch.eye(6).repeat(4, 1)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
        pruned = DivPrunePruner(retention_ratio=0.25)(video(x.view(4, 6, 6)))
        assert torch.equal(pruned.features.sum(0), torch.ones(6))

    def test_of_equal_tokens_the_first_are_kept(self) -> None:
        pruned = DivPrunePruner(retention_ratio=0.2)(video(torch.full((5, 10, 37), 0.3)))
        assert pruned.indices.tolist() == list(range(10))

    def test_a_single_token(self) -> None:
        assert DivPrunePruner(retention_ratio=0.5)(video(torch.ones(1, 1, 4))).indices.tolist() == [0]

    def test_kept_rows_are_untouched(self) -> None:
        tokens = video_tokens()
        pruned = DivPrunePruner()(tokens)
        assert torch.equal(pruned.features, tokens.features.flatten(0, 1)[pruned.indices])


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(("ratio", "kept"), [(0.1, 627), (0.15, 941), (0.2, 1254)])
def test_number_of_tokens(ratio: float, kept: int) -> None:
    tokens = video_tokens(frames=32, grid=(14, 14), dim=8)
    assert len(DivPrunePruner(retention_ratio=ratio)(tokens).indices) == kept


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_features(value: float) -> None:
    tokens = video_tokens()
    tokens.features[1, 5, 2] = value
    with pytest.raises(ValueError, match="features contain NaN or infinity"):
        DivPrunePruner()(tokens)
