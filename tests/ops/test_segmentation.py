"""tango.ops.segmentation: similarity of adjacent frames, and the two ways to cut a video by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tango.ops.segmentation import (
    adjacent_similarity,
    segment_by_cuts,
    segment_by_labels,
    segment_by_static_tokens,
    segment_numbers,
)

THRESHOLD = 0.8


def segment_by_loops(static: NDArray[np.bool_]) -> list[int]:
    """Eq. 3 step by step, over every window that ends at each frame."""
    best, last = [0], [0]
    for end in range(1, len(static) + 2):
        gains = [
            best[end - size] + int(static[end - size : end - 1].all(0).sum()) * (size - 1) for size in range(1, end + 1)
        ]
        last.append(1 + gains.index(max(gains)))  # the shortest of the best
        best.append(max(gains))
    lengths: list[int] = []
    end = len(static) + 1
    while end > 0:
        lengths.insert(0, last[end])
        end -= last[end]
    return lengths


def table(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def static_table(edges: list[str]) -> NDArray[np.float32]:
    """One string per pair of adjacent frames, one letter per token: `#` similar, `.` not, `=` exactly the threshold."""
    value = {"#": 0.9, ".": 0.1, "=": THRESHOLD}
    return table(*([value[letter] for letter in edge] for edge in edges))


def compositions(total: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum."""
    if total == 0:
        yield ()
    for first in range(1, total + 1):
        for rest in compositions(total - first):
            yield (first, *rest)


def best_by_enumeration(similarity: NDArray[np.float32], max_frames: int) -> list[int]:
    """The segmentation that saves most; of equals the one with the shorter last, then last but one, ... segment."""
    static = similarity > THRESHOLD

    def saved(sizes: tuple[int, ...]) -> int:
        ends = np.cumsum(sizes)
        return sum((n - 1) * int(static[end - n : end - 1].all(0).sum()) for n, end in zip(sizes, ends, strict=True))

    allowed = [sizes for sizes in compositions(len(similarity) + 1) if max(sizes) <= max_frames]
    return list(min(allowed, key=lambda sizes: (-saved(sizes), sizes[::-1])))


class TestAdjacentSimilarity:
    def test_is_the_cosine_of_tokens_at_the_same_place(self) -> None:
        x = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[2.0, 0.0], [4.0, -3.0]], [[-5.0, 0.0], [8.0, -6.0]]])
        similarity, inverse_norms = adjacent_similarity(x)
        torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        torch.testing.assert_close(inverse_norms, torch.tensor([[1.0, 0.2], [0.5, 0.2], [0.2, 0.1]]))

    def test_equals_torch_cosine(self) -> None:
        x = torch.randn(5, 7, 11, generator=torch.Generator().manual_seed(0))
        expected = torch.nn.functional.cosine_similarity(x[:-1], x[1:], dim=-1)
        torch.testing.assert_close(adjacent_similarity(x)[0], expected, rtol=0, atol=1e-6)

    def test_one_frame_has_no_neighbour(self) -> None:
        similarity, inverse_norms = adjacent_similarity(torch.ones(1, 3, 4))
        assert similarity.shape == (0, 3)
        torch.testing.assert_close(inverse_norms, torch.full((1, 3), 0.5))

    def test_zero_vectors_are_similar_to_nothing(self) -> None:
        similarity, inverse_norms = adjacent_similarity(torch.zeros(3, 2, 4))
        assert torch.equal(similarity, torch.zeros(2, 2))
        assert inverse_norms.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype: torch.dtype) -> None:
        x = torch.randn(4, 6, 300, generator=torch.Generator().manual_seed(1)).to(dtype) * 100  # squares overflow fp16
        similarity, inverse_norms = adjacent_similarity(x)
        assert similarity.dtype == inverse_norms.dtype == torch.float32
        assert torch.equal(similarity, adjacent_similarity(x.float())[0])

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_blocks_change_nothing(self, cut_into_blocks: Callable[[int], None], size: int, dtype: torch.dtype) -> None:
        x = torch.randn(7, 5, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
        whole = adjacent_similarity(x)
        cut_into_blocks(size)
        for block, expected in zip(adjacent_similarity(x), whole, strict=True):
            assert torch.equal(block, expected)

    def test_leaves_its_input_alone(self) -> None:
        x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(3))
        before = x.clone()
        adjacent_similarity(x)
        assert torch.equal(x, before)


class TestSegmentByStaticTokens:
    @pytest.mark.parametrize(
        ("edges", "expected"),
        [
            (["##", "##", "##"], [4]),
            (["..", "..", ".."], [1, 1, 1, 1]),
            (["##", "..", "##"], [2, 2]),
            (["..", "##", "##"], [1, 3]),
            ([".#.", ".#.", ".#."], [4]),  # a black bar in an otherwise changing video holds it together
            (["####", "#...", "####"], [2, 2]),  # 4 + 4 saved apart, 3 together
            (["####", "###.", "####"], [4]),  # 9 saved together
        ],
        ids=str,
    )
    def test_cuts_where_most_tokens_are_saved(self, edges: list[str], expected: list[int]) -> None:
        assert segment_by_static_tokens(static_table(edges), THRESHOLD) == expected

    @pytest.mark.parametrize(
        ("edges", "expected"),
        [
            (["#.", ".#"], [2, 1]),  # frame 1 fits either neighbour
            (["##.", "#.#"], [2, 1]),  # [2, 1], [1, 2] and [3] all save 2
            (["#", "."], [2, 1]),
            ([".", "#"], [1, 2]),
            (["#.", ".#", "#."], [2, 2]),
        ],
        ids=str,
    )
    def test_of_equal_savings_takes_the_shorter_last_segment(self, edges: list[str], expected: list[int]) -> None:
        assert segment_by_static_tokens(static_table(edges), THRESHOLD) == expected

    def test_similarity_at_the_threshold_is_not_static(self) -> None:
        assert segment_by_static_tokens(static_table(["==", "##"]), float(np.float32(THRESHOLD))) == [1, 2]

    def test_one_frame(self) -> None:
        assert segment_by_static_tokens(np.empty((0, 4), np.float32), THRESHOLD) == [1]

    @pytest.mark.parametrize(
        ("max_frames", "expected"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (7, [7]), (99, [7])]
    )
    def test_segments_have_at_most_max_frames(self, max_frames: int, expected: list[int]) -> None:
        assert segment_by_static_tokens(static_table(["##"] * 6), THRESHOLD, max_frames=max_frames) == expected

    @given(
        st.integers(1, 8).flatmap(
            lambda T: st.lists(st.text("#.=", min_size=3, max_size=3), min_size=T - 1, max_size=T - 1)
        ),
        st.integers(1, 8),
    )
    def test_equals_enumeration(self, edges: list[str], max_frames: int) -> None:
        similarity = static_table(edges).reshape(len(edges), 3)
        threshold = float(np.float32(THRESHOLD))
        expected = best_by_enumeration(similarity, max_frames)
        assert segment_by_static_tokens(similarity, threshold, max_frames=max_frames) == expected

    @pytest.mark.parametrize("seed", range(8))
    def test_equals_enumeration_on_many_tokens(self, seed: int) -> None:
        similarity = np.random.default_rng(seed).uniform(0.6, 1.0, (7, 20)).astype(np.float32)
        assert segment_by_static_tokens(similarity, THRESHOLD) == best_by_enumeration(similarity, 8)

    @pytest.mark.parametrize("seed", range(4))
    def test_equals_the_plain_scan_on_long_videos(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        similarity = rng.uniform(0.5, 1.0, (40, 12)).astype(np.float32)
        similarity[:, :4] = 0.95
        similarity[rng.integers(0, 40, 5)] = 0.3
        expected = segment_by_loops(similarity > THRESHOLD)
        assert segment_by_static_tokens(similarity, THRESHOLD) == expected

    def test_leaves_its_input_alone(self) -> None:
        similarity = static_table(["#.", "##", ".="])
        before = similarity.copy()
        segment_by_static_tokens(similarity, THRESHOLD)
        np.testing.assert_array_equal(similarity, before)


class TestSegmentByCuts:
    SIMILARITY = (0.9, 0.1, 0.9, 0.5, 0.9)

    @pytest.mark.parametrize(
        ("threshold", "min_segments", "expected"),
        [
            (0.3, 1, [2, 4]),  # one value below the threshold
            (0.3, 3, [2, 2, 2]),  # and one more, the next smallest
            (0.0, 1, [6]),
            (0.0, 2, [2, 4]),
            (0.6, 1, [2, 2, 2]),  # the threshold alone cuts more often than min_segments asks
            (0.95, 1, [1] * 6),
            (0.0, 6, [1] * 6),
            (0.0, 50, [1] * 6),  # more segments than frames: single frames
        ],
    )
    def test_cuts_at_weak_similarities(self, threshold: float, min_segments: int, expected: list[int]) -> None:
        similarity = np.array(self.SIMILARITY, np.float32)
        assert segment_by_cuts(similarity, threshold, min_segments=min_segments) == expected

    def test_default_is_eight_segments(self) -> None:
        similarity = np.linspace(0.99, 0.9, 15, dtype=np.float32)
        assert segment_by_cuts(similarity, 0.5) == [9, 1, 1, 1, 1, 1, 1, 1]

    def test_similarity_at_the_threshold_is_no_cut(self) -> None:
        assert segment_by_cuts(np.array([0.5, 0.25], np.float32), 0.5, min_segments=1) == [2, 1]

    @pytest.mark.parametrize(
        ("min_segments", "expected"), [(2, [1, 4]), (3, [1, 1, 3]), (4, [1, 1, 1, 2]), (5, [1] * 5)]
    )
    def test_of_equal_similarities_cuts_the_earlier(self, min_segments: int, expected: list[int]) -> None:
        assert segment_by_cuts(np.full(4, 0.7, np.float32), 0.1, min_segments=min_segments) == expected

    @pytest.mark.parametrize("min_segments", [1, 2, 8])
    def test_one_frame(self, min_segments: int) -> None:
        assert segment_by_cuts(np.empty(0, np.float32), 0.5, min_segments=min_segments) == [1]

    @given(st.lists(st.sampled_from([0.1, 0.4, 0.5, 0.8]), max_size=12), st.integers(1, 15))
    def test_sizes_add_up_and_are_enough(self, similarity: list[float], min_segments: int) -> None:
        sizes = segment_by_cuts(np.array(similarity, np.float32), 0.45, min_segments=min_segments)
        T = len(similarity) + 1
        assert sum(sizes) == T
        assert min(sizes) >= 1
        num_below = sum(s < 0.45 for s in similarity)
        assert len(sizes) == max(min(min_segments, T), num_below + 1)

    @given(st.lists(st.sampled_from([0.1, 0.4, 0.5, 0.8]), max_size=12), st.integers(1, 15), st.floats(-1, 1))
    def test_on_the_device_it_is_the_same(self, similarity: list[float], min_segments: int, threshold: float) -> None:
        values = np.array(similarity, np.float32)
        numbers = segment_numbers(torch.from_numpy(values.copy()), threshold, min_segments=min_segments)
        sizes = segment_by_cuts(values, threshold, min_segments=min_segments)
        assert numbers.tolist() == [i for i, size in enumerate(sizes) for _ in range(size)]

    def test_leaves_its_input_alone(self) -> None:
        similarity = np.array(self.SIMILARITY, np.float32)
        segment_by_cuts(similarity, 0.3)
        np.testing.assert_array_equal(similarity, np.array(self.SIMILARITY, np.float32))


class TestSegmentByLabels:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            ("a", [1]),
            ("aaa", [3]),
            ("aabbb", [2, 3]),
            ("aaabaa", [6]),  # b has no run of two frames; a's shorter run is to be mended, too: all join aaa
            ("aabaa", [5]),  # both runs of a are the longest: they hold, and the frame between joins the left one
            ("aacbbb", [2, 4]),  # the longer neighbour
            ("aaacbb", [4, 2]),
            ("aacbb", [3, 2]),  # equally long: the left one
            ("caabb", [3, 2]),  # no left neighbour
            ("aabbc", [2, 3]),
            ("aabbbaddd", [2, 4, 3]),  # a, once more, between equally long neighbours
            ("aacdebbbb", [2, 7]),  # one gap, not three
            ("aacbbdeeee", [3, 2, 5]),  # d joins e: two of b are fewer than four
            ("aacbbbdeee", [2, 5, 3]),  # b, grown to four by then, keeps d from e
            ("abab", [4]),  # no run of two frames
            ("abcdd", [5]),
        ],
    )
    def test_by_hand(self, labels: str, expected: list[int]) -> None:
        assert segment_by_labels([float(ord(label)) for label in labels]) == expected

    @given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=14))
    def test_sizes_add_up(self, labels: list[float]) -> None:
        sizes = segment_by_labels(labels)
        assert sum(sizes) == len(labels)
        assert len(sizes) == 1 or min(sizes) >= 2
