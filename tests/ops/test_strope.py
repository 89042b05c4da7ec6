"""tango.ops.strope: rotary embedding over time, row and column."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tango.ops.strope import check_sections, rope_sections, strope


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def strope_by_loops(x: Tensor, seconds: list[float], grid: tuple[int, int], sections: tuple[int, int, int]) -> Tensor:
    """Eq. 6-8 number by number in double precision, channels paired by halves; bases 1e4 and 1e3."""
    out = x.double().clone()
    T, N, _ = x.shape
    for t in range(T):
        for n in range(N):
            start = 0
            for position, size, base in zip(
                (seconds[t], n // grid[1], n % grid[1]), sections, (1e4, 1e3, 1e3), strict=True
            ):
                for i in range(size // 2):
                    angle = position * base ** (-2 * i / size)
                    a, b = x[t, n, start + i].item(), x[t, n, start + size // 2 + i].item()
                    out[t, n, start + i] = a * math.cos(angle) - b * math.sin(angle)
                    out[t, n, start + size // 2 + i] = b * math.cos(angle) + a * math.sin(angle)
                start += size
    return out


class TestSections:
    @pytest.mark.parametrize(
        ("dim", "expected"),
        [(3584, (1196, 1194, 1194)), (2, (2, 0, 0)), (4, (2, 2, 0)), (6, (2, 2, 2)), (8, (4, 2, 2)), (10, (4, 4, 2))],
    )
    def test_default_split(self, dim: int, expected: tuple[int, int, int]) -> None:
        assert rope_sections(dim) == expected

    @given(st.integers(1, 5000).map(lambda half: 2 * half))
    def test_default_split_is_even_fair_and_complete(self, dim: int) -> None:
        sections = rope_sections(dim)
        assert sum(sections) == dim
        assert all(size % 2 == 0 for size in sections)
        assert max(sections) - min(sections) <= 2
        assert list(sections) == sorted(sections, reverse=True)

    @pytest.mark.parametrize("dim", [0, -2, 1, 7, 3583])
    def test_odd_or_missing_channels_are_refused(self, dim: int) -> None:
        with pytest.raises(ValueError, match=f"even number of channels, got {dim}"):
            rope_sections(dim)

    @pytest.mark.parametrize("sections", [(2, 2, 2), (4, 4, 0), (8, 0, 0), (0, 0, 8)])
    def test_fitting_sections_are_taken(self, sections: tuple[int, int, int]) -> None:
        assert check_sections(sections, sum(sections)) == sections

    @pytest.mark.usefixtures("unchecked_annotations")
    @pytest.mark.parametrize("sections", [(4, 4, 2), (3, 3, 2), (10, -2, 0), (4, 4), (2, 2, 2, 2), ()])
    def test_misfitting_sections_are_refused(self, sections: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"rope_sections must be three even numbers that add up to D = 8"):
            check_sections(sections, 8)


class TestStrope:
    def test_turns_each_section_by_its_own_coordinate(self) -> None:
        x = torch.tensor([1.0, 0.0]).repeat(3).expand(2, 6, 6)  # two channels for each axis: one radian per unit
        seconds = torch.tensor([0.5, 2.0])
        out = strope(x, seconds, (2, 3))
        t, row, column = 2.0, 1, 1  # the second frame's token 4
        expected = [f(angle) for angle in (t, row, column) for f in (math.cos, math.sin)]
        torch.testing.assert_close(out[1, 4], torch.tensor(expected))

    def test_grid_is_row_major(self) -> None:
        x = torch.tensor([0.0, 1.0, 1.0, 0.0]).expand(1, 6, 4)
        out = strope(x, torch.zeros(1), (2, 3), sections=(0, 2, 2))
        angles = torch.atan2(out[0, :, 3], out[0, :, 2])
        torch.testing.assert_close(angles, torch.tensor([0.0, 1, 2, 0, 1, 2]))

    @pytest.mark.parametrize("sections", [(4, 4, 4), (6, 4, 2), (12, 0, 0), (0, 8, 4)])
    def test_equals_loops(self, sections: tuple[int, int, int]) -> None:
        x, seconds = randn(3, 6, 12), [0.0, 1.25, 40.5]
        out = strope(x, torch.tensor(seconds), (3, 2), sections=sections)
        torch.testing.assert_close(out.double(), strope_by_loops(x, seconds, (3, 2), sections), rtol=0, atol=1e-5)

    def test_bases_set_how_fast_the_later_channels_turn(self) -> None:
        x = torch.tensor([0.0, 1.0, 0.0, 0.0]).expand(1, 1, 4)  # the slow pair of a section of four
        slow = strope(x, torch.ones(1), (1, 1), sections=(4, 0, 0), base_time=1e4)
        fast = strope(x, torch.ones(1), (1, 1), sections=(4, 0, 0), base_time=4.0)
        torch.testing.assert_close(slow[0, 0], torch.tensor([0.0, math.cos(0.01), 0.0, math.sin(0.01)]))
        torch.testing.assert_close(fast[0, 0], torch.tensor([0.0, math.cos(0.5), 0.0, math.sin(0.5)]))

    def test_origin_is_left_as_it_is(self) -> None:
        x = randn(1, 6, 12)
        assert torch.equal(strope(x, torch.zeros(1), (2, 3))[0, 0], x[0, 0])

    @given(st.floats(0, 500), st.integers(0, 99))
    def test_lengths_are_kept(self, second: float, seed: int) -> None:
        x = randn(1, 6, 14, seed=seed)
        out = strope(x, torch.tensor([second]), (2, 3))
        torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-6)

    @given(st.floats(0, 20), st.floats(0, 20), st.floats(0, 20))
    def test_similarity_depends_on_the_time_between_two_frames_only(self, a: float, b: float, shift: float) -> None:
        x = randn(2, 1, 16)
        first = strope(x, torch.tensor([a, b]), (1, 1))
        later = strope(x, torch.tensor([a + shift, b + shift]), (1, 1))
        torch.testing.assert_close(first[0, 0] @ first[1, 0], later[0, 0] @ later[1, 0], rtol=0, atol=1e-4)

    def test_similarity_depends_on_the_rows_and_columns_between_two_tokens_only(self) -> None:
        x = randn(1, 1, 18).expand(1, 20, 18)  # the same content everywhere on a 4 x 5 grid
        out = strope(x, torch.zeros(1), (4, 5))[0].view(4, 5, 18)
        torch.testing.assert_close((out[0, 0] * out[2, 1]).sum(), (out[1, 3] * out[3, 4]).sum(), rtol=0, atol=1e-4)

    def test_equal_content_grows_dissimilar_with_time(self) -> None:
        x = torch.ones(4, 1, 24)
        out = strope(x, torch.tensor([0.0, 0.1, 0.5, 1.0]), (1, 1))[:, 0]
        to_first = out @ out[0]
        assert (to_first.diff() < 0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_computes_in_float32(self, dtype: torch.dtype) -> None:
        x = randn(2, 4, 8).to(dtype)
        out = strope(x, torch.tensor([0.0, 3.0]), (2, 2))
        assert out.dtype == torch.float32
        assert torch.equal(out, strope(x.float(), torch.tensor([0.0, 3.0]), (2, 2)))

    def test_leaves_its_input_alone(self) -> None:
        x, seconds = randn(2, 4, 8), torch.tensor([1.0, 3.0])
        before = x.clone()
        strope(x, seconds, (2, 2))
        assert torch.equal(x, before)
        assert seconds.tolist() == [1.0, 3.0]

    def test_grid_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"a \(2, 3\) grid has 6 tokens, got 4"):
            strope(randn(1, 4, 8), torch.zeros(1), (2, 3))

    def test_odd_channels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="even number of channels, got 7"):
            strope(randn(1, 4, 7), torch.zeros(1), (2, 2))
