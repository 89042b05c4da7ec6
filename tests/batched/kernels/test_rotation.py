"""tango.batched.kernels.rotation, against complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from tango.batched.kernels import rotation

KERNEL = "tango.batched.kernels.rotation.gather_rotated"
Interpreter = Callable[..., Tensor]
T, H, W = 4, 2, 3


def tokens(sections: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(T * H * W, sum(sections), generator=torch.Generator().manual_seed(0)).to(dtype)
    return x, x.float().norm(dim=-1).reciprocal()


def angles(sections: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.rand(count, size // 2, generator=g) * 30 for count, size in zip((T, H, W), sections, strict=True)]


def tables(sections: tuple[int, ...]) -> list[Tensor]:
    return [torch.stack([angle.cos(), angle.sin()], dim=1) for angle in angles(sections)]


def by_complex_numbers(x: Tensor, sections: tuple[int, ...]) -> Tensor:
    """All tokens, (T H W, D)."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    place = torch.arange(T * H * W)
    parts = []
    for section, angle, at in zip(
        unit.split(sections, dim=-1),
        angles(sections),
        (place // (H * W), place // W % H, place % W),
        strict=True,
    ):
        turned = torch.complex(*section.chunk(2, dim=-1)) * torch.polar(torch.ones(()), angle).to(torch.complex128)[at]
        parts += [turned.real, turned.imag]
    return torch.cat(parts, dim=-1).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sections", [(16, 14, 14), (20, 0, 12), (600, 2, 6)])  # the last: more than one block
def test_rotates(interpreted: Interpreter, sections: tuple[int, ...], dtype: torch.dtype) -> None:
    x, inverse_norms = tokens(sections, dtype)
    some = torch.tensor([23, 0, 7, 7, 12, 5])
    out = torch.empty(len(some), sum(sections))
    found = interpreted(KERNEL, x, inverse_norms, some, (H, W), tables(sections), out=out)
    torch.testing.assert_close(found, by_complex_numbers(x, sections)[some], rtol=1e-5, atol=1e-6)


def test_writes_nowhere_else(interpreted: Interpreter) -> None:
    sections = (6, 4, 4)
    x, inverse_norms = tokens(sections, torch.float32)
    out = torch.full((3, 17), -7.0)[:, :14]
    found = interpreted(KERNEL, x, inverse_norms, torch.tensor([4, 9]), (H, W), tables(sections), out=out)
    torch.testing.assert_close(found[:2], by_complex_numbers(x, sections)[[4, 9]], rtol=1e-5, atol=1e-6)
    assert found[2].tolist() == [-7.0] * 14


def test_no_tokens() -> None:
    sections = (6, 4, 4)
    time, row, column = tables(sections)
    none, out = torch.empty(0, dtype=torch.long), torch.empty(0, 14)
    assert rotation.gather_rotated(*tokens(sections, torch.float32), none, (H, W), (time, row, column), out=out) is out
