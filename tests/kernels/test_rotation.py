"""tango.kernels.rotation, against `tango.ops.strope.gather_rotated`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tango.ops.strope import gather_rotated, rope_sections, strope_rotations

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from tango.kernels import rotation

KERNEL = "tango.kernels.rotation.gather_rotated"
Interpreter = Callable[..., Tensor]
GRID, T = (2, 3), 5


def tokens(D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(T, GRID[0] * GRID[1], D, generator=torch.Generator().manual_seed(D)).to(dtype)
    return x, x.float().norm(dim=-1).reciprocal()


def rotations(sections: tuple[int, int, int]) -> list[list[Tensor]]:
    times = torch.tensor([0.0, 0.5, 2.0, 7.0, 30.0])
    tables = strope_rotations(times, GRID, sections, base_time=1e4, base_space=1e3, device=times.device)
    return [list(table) for table in tables]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sections", [rope_sections(44), (20, 0, 12), (600, 2, 6)])  # the last: over one block
def test_equals_the_library(interpreted: Interpreter, sections: tuple[int, int, int], dtype: torch.dtype) -> None:
    (x, inverse_norms), tables = tokens(sum(sections), dtype), rotations(sections)
    frames, places = [1, 2, 4], torch.tensor([0, 2, 5])
    flat = (torch.tensor(frames)[:, None] * 6 + places).flatten()
    expected = torch.empty(3, 3, sum(sections))
    gather_rotated(x, inverse_norms, frames, places, tuple(map(tuple, tables)), out=expected)
    found = interpreted(KERNEL, x, inverse_norms, flat, tables)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.view_as(expected), expected, rtol=1e-6, atol=1e-7)


def test_tokens_in_any_order(interpreted: Interpreter) -> None:
    (x, inverse_norms), tables = tokens(44, torch.float32), rotations(rope_sections(44))
    every = interpreted(KERNEL, x, inverse_norms, torch.arange(30), tables)
    some = torch.tensor([29, 0, 7, 7])
    assert torch.equal(interpreted(KERNEL, x, inverse_norms, some, tables), every[some])


def test_no_tokens() -> None:
    (x, inverse_norms), tables = tokens(44, torch.float32), rotations(rope_sections(44))
    none = torch.empty(0, dtype=torch.long)
    assert rotation.gather_rotated(x, inverse_norms, none, tuple(map(tuple, tables))).shape == (0, 44)
