"""tango.methods.dycoke against plain loops, the counts of the release, and cases by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tango.containers import VisualTokens
from tango.errors import BudgetError, OptionError
from tango.methods import build_pruner
from tango.methods.dycoke import DyCokePruner
from tests.synthetic import VIDEOS, video_tokens


def video(x: Tensor) -> VisualTokens:
    return VisualTokens(features=x, grid=(1, x.shape[1]), timestamps_s=torch.arange(float(len(x))))


def noise(T: int, N: int, dim: int = 4) -> VisualTokens:
    return video(torch.randn(T, N, dim, generator=torch.Generator().manual_seed(T)))


def per_frame(tokens: VisualTokens, **options: Any) -> list[int]:
    T, N, _ = tokens.features.shape
    return (DyCokePruner(**options)(tokens).indices // N).bincount(minlength=T).tolist()


# --- groups of four written out in loops over lists, in double precision


def cosine(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def by_loops(x: Tensor, kept_per_frame: dict[int, int]) -> list[int]:
    """Kept flat indices, if these many tokens stay of the frames that are pruned."""
    frames = x.double().tolist()
    N = x.shape[1]

    def least_similar(frame: int, against: int) -> list[int]:
        similarity = [cosine(frames[frame][n], frames[against][n]) for n in range(N)]
        order = sorted(range(N), key=lambda n: (similarity[n], n))
        return [frame * N + n for n in order[: kept_per_frame[frame]]]

    kept: dict[int, list[int]] = {t: [t * N + n for n in range(N)] for t in range(len(frames))}
    for i in range(0, len(frames) - 1, 2):
        kept[i + 1] = least_similar(i + 1, i)
    for i in range(0, len(frames) - 2, 4):
        kept[i + 2] = least_similar(i + 2, i)
    return sorted(index for indices in kept.values() for index in indices)


class TestAgainstLoops:
    @pytest.mark.parametrize("name", VIDEOS)
    @pytest.mark.parametrize("k", [0.3, 0.7, 0.9])
    def test_share_dropped(self, name: str, k: float) -> None:
        x = video_tokens(**VIDEOS[name]).features
        kept = int((1 - k) * x.shape[1])
        expected = by_loops(x, dict.fromkeys(range(len(x)), kept))
        assert DyCokePruner(share_dropped=k)(video(x)).indices.tolist() == expected

    @pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])
    def test_any_number_of_frames(self, T: int) -> None:
        tokens = noise(T, 10)
        expected = by_loops(tokens.features, dict.fromkeys(range(T), 4))
        assert DyCokePruner(share_dropped=0.6)(tokens).indices.tolist() == expected

    @pytest.mark.parametrize("T", [4, 7, 8, 13])
    @pytest.mark.parametrize("ratio", [0.4, 0.5, 0.77, 0.99])
    def test_solved_share(self, T: int, ratio: float) -> None:
        """Frames that are pruned share evenly what the whole ones leave; the earlier ones get what is over."""
        tokens = noise(T, 10)
        pruned_frames = [t for t in range(T) if t % 4]
        rest = round(ratio * T * 10) - 10 * (T - len(pruned_frames))
        even, over = divmod(rest, len(pruned_frames))
        kept = {t: even + (i < over) for i, t in enumerate(pruned_frames)}
        assert DyCokePruner(retention_ratio=ratio)(tokens).indices.tolist() == by_loops(tokens.features, kept)


class TestCounts:
    def test_of_the_release_at_32_frames_of_196(self) -> None:
        tokens = noise(32, 196)
        counts = per_frame(tokens, share_dropped=0.7, release_tail=True)
        assert sum(counts) == 3098
        assert counts == [196, 58, 58, 58] * 7 + [196, 58, 196, 58]
        assert per_frame(tokens, share_dropped=0.7) == [196, 58, 58, 58] * 8

    @pytest.mark.parametrize("T", [4, 8, 32])
    def test_lowest_of_the_release(self, T: int) -> None:
        counts = per_frame(noise(T, 20), share_dropped=1.0, release_tail=True)
        assert sum(counts) == 20 * (T // 4 + 1)  # 28.1 % of 32 frames

    @pytest.mark.parametrize("T", [2, 5, 6, 7, 9, 30])
    def test_the_release_prunes_the_tail_of_other_lengths(self, T: int) -> None:
        options = {"share_dropped": 0.7}
        assert per_frame(noise(T, 20), **options, release_tail=True) == per_frame(noise(T, 20), **options)

    @pytest.mark.parametrize(("ratio", "count"), [(0.10, 627), (0.15, 941), (0.20, 1254), (0.25, 1568), (0.5, 3136)])
    @pytest.mark.parametrize("exact_budget", [False, True])
    def test_solved_at_32_frames_of_196(self, ratio: float, count: int, exact_budget: bool) -> None:
        counts = per_frame(noise(32, 196), retention_ratio=ratio, exact_budget=exact_budget)
        assert sum(counts) == count

    @pytest.mark.parametrize("T", range(1, 18))
    @pytest.mark.parametrize("ratio", [1e-6, 0.03, 0.1, 0.24, 0.26, 0.6, 0.999])
    def test_every_ratio_is_met(self, T: int, ratio: float) -> None:
        assert sum(per_frame(noise(T, 9), retention_ratio=ratio)) == max(1, round(ratio * T * 9))

    @pytest.mark.parametrize(
        ("ratio", "group"), [(0.5, 4), (0.25, 4), (0.249, 8), (0.125, 8), (0.1, 16), (0.05, 32), (1 / 32, 32)]
    )
    def test_groups_grow_no_more_than_needed(self, ratio: float, group: int) -> None:
        counts = per_frame(noise(32, 64), retention_ratio=ratio)
        assert [t for t, count in enumerate(counts) if count == 64] == list(range(0, 32, group))


class TestByHand:
    def test_frames_of_a_group(self) -> None:
        """Frame 1 is compared with 0, 2 with 0, 3 with 2; each differs in one position from that frame alone."""
        a, b = [1.0, 0.0], [0.0, 1.0]
        x = torch.tensor([[a, a, a, a], [a, b, a, a], [a, a, b, a], [a, a, b, b]])
        pruned = DyCokePruner(share_dropped=0.75)(video(x))
        assert pruned.indices.tolist() == [0, 1, 2, 3, 4 + 1, 8 + 2, 12 + 3]
        assert torch.equal(pruned.features, x.flatten(0, 1)[pruned.indices])

    def test_frames_of_a_larger_group(self) -> None:
        """Angles tell which frame each is compared with: only one position of a frame turns away from that frame's."""
        x = torch.zeros(8, 8, 2)
        x[..., 0] = 1
        references = {1: 0, 2: 0, 3: 2, 4: 0, 5: 4, 6: 4, 7: 6}
        for frame, reference in references.items():
            x[frame] = x[reference]
            x[frame, frame] = torch.tensor([0.0, 1.0])
        pruned = DyCokePruner(retention_ratio=15 / 64)(video(x))
        assert pruned.indices.tolist() == [*range(8), *(8 * t + t for t in references)]

    def test_kept_positions_of_the_first_frame_alone(self) -> None:
        tokens = noise(6, 10)
        assert DyCokePruner(retention_ratio=3 / 60)(tokens).indices.tolist() == [1, 5, 8]
        assert DyCokePruner(retention_ratio=0.2)(noise(1, 10)).indices.tolist() == [2, 7]

    def test_of_equally_similar_tokens_the_first_are_kept(self) -> None:
        x = torch.full((4, 10, 37), 0.3) * torch.arange(1.0, 5)[:, None, None]
        kept = DyCokePruner(share_dropped=0.7)(video(x)).indices.tolist()
        assert kept == [*range(10), 10, 11, 12, 20, 21, 22, 30, 31, 32]

    def test_length_does_not_matter(self) -> None:
        tokens = noise(9, 20)
        scaled = video(tokens.features * torch.arange(1.0, 10)[:, None, None])
        assert torch.equal(DyCokePruner()(scaled).indices, DyCokePruner()(tokens).indices)

    @pytest.mark.parametrize("size", [1, 3])
    def test_blocks_change_nothing(self, cut_into_blocks: Any, size: int) -> None:
        tokens = video_tokens(frames=9)
        whole = DyCokePruner(retention_ratio=0.4)(tokens)
        cut_into_blocks(size)
        assert torch.equal(DyCokePruner(retention_ratio=0.4)(tokens).indices, whole.indices)


@pytest.mark.usefixtures("unchecked_annotations")
class TestConfiguration:
    def test_fixed_groups_refuse_what_they_cannot_reach(self) -> None:
        pruner = build_pruner("dycoke", group_frames=4)
        message = r"at least 3 of these 9 frames, so retention_ratio must be at least 0\.3333, got 0\.1; group_fra"
        with pytest.raises(BudgetError, match=message):
            pruner(noise(9, 10))
        assert len(build_pruner("dycoke", group_frames=4, retention_ratio=1 / 3)(noise(9, 10)).indices) == 30

    @pytest.mark.parametrize(
        ("option", "value"),
        [("group_frames", 1), ("share_dropped", 70), ("share_dropped", -0.1), ("share_dropped", math.nan)],
    )
    def test_options_out_of_range_are_refused(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError, match=f"^{option} must lie in .* got {value!r}"):
            build_pruner("dycoke", **{option: value})

    def test_two_ways_to_set_the_number_of_tokens_are_refused(self) -> None:
        with pytest.raises(OptionError, match="share_dropped sets the number of tokens, and so does exact_budget"):
            build_pruner("dycoke", share_dropped=0.7, exact_budget=True)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("frame", [0, 2])
    def test_broken_features_are_refused(self, value: float, frame: int) -> None:
        tokens = video_tokens()
        tokens.features[frame, 5, 2] = value
        with pytest.raises(ValueError, match="features contain NaN or infinity"):
            DyCokePruner()(tokens)
