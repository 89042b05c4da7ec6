"""The kernels on a real GPU, in sizes that the interpreter takes too long for, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from tango.batched.kernels import kernels_run_on
from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods import build_pruner
from tango.ops.merging import merge_into_anchors
from tango.ops.similarity import split_products

if not torch.cuda.is_available() or not kernels_run_on(torch.empty(0, device="cuda")):
    pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or more, and Triton", allow_module_level=True)

from tango.batched.kernels import merging, rotation

Result = TypeVar("Result")


def generator() -> torch.Generator:
    return torch.Generator("cuda").manual_seed(0)


def without_waiting(work: Callable[[], Result]) -> Result:
    """What it returns when nothing needs to be compiled any more, and nothing may wait for the device."""
    work()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_split_products_err_by_less_than_a_tick() -> None:
    rows = torch.nn.functional.normalize(torch.randn(4096, 3584, device="cuda", generator=generator()), dim=1)
    error = split_products(rows, rows).double() - rows.double() @ rows.double().mT
    assert error.abs().max() < 2**-18 / 2  # 3.3e-6 at most on a H200, which is 0.4 of a tick of a squared distance


@pytest.mark.parametrize("frames", [32, 64])
@pytest.mark.parametrize("data", ["iid", "take", "video"])
def test_both_engines_keep_the_same_tokens(data: str, frames: int) -> None:
    tokens = synthetic_tokens(data, frames, (14, 14), 3584, dtype=torch.bfloat16, device="cuda")
    page, engine = (build_pruner("tango", engine=engine)(tokens).indices for engine in ("plain", "batched"))
    assert torch.isin(page, engine).float().mean() >= 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_merging(dtype: torch.dtype) -> None:
    x = torch.randn(6272, 3584, device="cuda", generator=generator()).to(dtype)
    cluster, anchors = torch.arange(len(x), device="cuda") % 257, torch.arange(256, device="cuda")
    spans = torch.ones_like(anchors)
    found = without_waiting(lambda: merging.merge_over_frames(x, cluster, anchors, spans, weight=0.6, stride=1))
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    expected = merge_into_anchors(x, cluster, anchors, weight=0.6)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_rotation() -> None:
    T, H, W, halves = 8, 14, 14, (598, 597, 597)
    x = torch.randn(T * H * W, 3584, device="cuda", generator=generator()).bfloat16()
    inverse_norms, every = x.float().norm(dim=-1).reciprocal(), torch.arange(len(x), device="cuda")
    angles = [
        torch.rand(count, half, device="cuda", generator=generator())
        for count, half in zip((T, H, W), halves, strict=True)
    ]
    time, row, column = (torch.stack([angle.cos(), angle.sin()], dim=1) for angle in angles)
    out = torch.empty(len(x), 3584, device="cuda")
    found = without_waiting(
        lambda: rotation.gather_rotated(x, inverse_norms, every, (H, W), (time, row, column), out=out)
    )
    positions = every // (H * W), every // W % H, every % W
    start = 0
    for angle, half, position in zip(angles, halves, positions, strict=True):
        first, second = (x[:, start : start + 2 * half].float() * inverse_norms[:, None]).chunk(2, dim=1)
        cos, sin = angle.cos()[position], angle.sin()[position]
        expected = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)
        torch.testing.assert_close(found[:, start : start + 2 * half], expected, rtol=1e-5, atol=1e-6)
        start += 2 * half
