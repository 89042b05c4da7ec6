"""The kernels on a real GPU, in sizes that the interpreter takes too long for, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from tango.kernels import kernels_run_on
from tango.ops.clustering import density_peaks
from tango.ops.merging import merge_into_anchors

if not torch.cuda.is_available() or not kernels_run_on(torch.empty(0, device="cuda")):
    pytest.skip("needs an NVIDIA GPU of compute capability 8.0 or more, and Triton", allow_module_level=True)

from tango.kernels import density, merging, rotation

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


@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_density_peaks_of_exact_products(precision: density.Precision) -> None:
    sizes, num_clusters = [184] * 16 + [1, 3000], [8] * 16 + [1, 300]
    # Sums of products of -1, 0 and 1 are exact in every precision and order.
    rows = torch.randint(-1, 2, (sum(sizes), 3584), device="cuda", generator=generator()).float()
    centres, nearest = without_waiting(
        lambda: density.density_peaks_varlen(rows, sizes, num_clusters, k=7, precision=precision)
    )
    start = 0
    for x, ours, closest in zip(rows.split(sizes), centres.split(num_clusters), nearest.split(sizes), strict=True):
        expected = density_peaks(x[None], len(ours), k=7)
        assert (ours - start).sort().values.tolist() == expected[0][0].sort().values.tolist()
        assert (closest - start).tolist() == expected[1][0].tolist()
        start += len(x)


def test_density_peaks_of_real_products() -> None:
    rows = torch.nn.functional.normalize(torch.randn(32 * 184, 3584, device="cuda", generator=generator()), dim=1)
    centres, _ = density.density_peaks_varlen(rows, [184] * 32, [8] * 32, k=7)
    expected = (
        density_peaks(rows.view(32, 184, -1), 8, k=7)[0] + torch.arange(0, len(rows), 184, device="cuda")[:, None]
    )
    assert len(set(centres.tolist()) & set(expected.flatten().tolist())) >= 0.98 * len(centres)


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
