"""tango.kernels.merging, against `tango.ops.merging.merge_into_anchors`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tango.ops.merging import merge_into_anchors

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from tango.kernels import merging

KERNEL = "tango.kernels.merging.merge_into_anchors"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Interpreter = Callable[..., Tensor]


def clusters(M: int, D: int, C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, the cluster of each or C for none, and the anchors, one in each cluster."""
    g = torch.Generator().manual_seed(M)
    x, cluster, anchors = torch.randn(M, D, generator=g), torch.randint(0, C + 1, (M,), generator=g), torch.randperm(M)
    cluster[anchors[:C]] = torch.arange(C)
    return x.to(dtype), cluster, anchors[:C]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0, 0.1, 0.35, 0.6, 0.9, 1.0])
def test_equals_the_library(interpreted: Interpreter, weight: float, dtype: torch.dtype) -> None:
    x, cluster, anchors = clusters(60, 300, 7, dtype)  # more than one block of members and of channels
    found = interpreted(KERNEL, x, cluster, anchors, weight=weight)
    expected = merge_into_anchors(x, cluster, anchors, weight=weight)
    assert found.dtype == dtype
    # Rounded to half precision, sums that differ in float32's last bits can be neighbours.
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
def test_a_cluster_of_one_is_its_anchor_to_the_last_bit(
    interpreted: Interpreter, weight: float, dtype: torch.dtype
) -> None:
    x, every = torch.randn(20, 33, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(20)
    assert torch.equal(interpreted(KERNEL, x, every, every, weight=weight), x)


def test_weight_one_keeps_the_anchors_to_the_last_bit(interpreted: Interpreter) -> None:
    x, cluster, anchors = clusters(50, 33, 3, torch.float32)
    assert torch.equal(interpreted(KERNEL, x, cluster, anchors, weight=1.0), x[anchors])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_clusters_are_summed_in_float32(interpreted: Interpreter, dtype: torch.dtype) -> None:
    x = torch.full((1200, 3), 60.0, dtype=dtype)  # float16 ends at 65 504, bfloat16 stops counting at 256 ones
    found = interpreted(KERNEL, x, torch.zeros(1200, dtype=torch.long), torch.tensor([9]), weight=0.0)
    assert found.tolist() == [[60.0] * 3]


def test_rows_may_lie_apart_in_memory(interpreted: Interpreter) -> None:
    x, cluster, anchors = clusters(30, 40, 4, torch.float32)
    apart = x.repeat_interleave(2, dim=1)[:, ::2]
    assert not apart.is_contiguous()
    found = interpreted(KERNEL, apart, cluster, anchors, weight=0.6)
    assert torch.equal(found, interpreted(KERNEL, x, cluster, anchors, weight=0.6))


def test_no_clusters() -> None:
    none = torch.empty(0, dtype=torch.long)
    assert merging.merge_into_anchors(torch.ones(6, 2), torch.zeros(6).long(), none, weight=0.6).shape == (0, 2)


def test_gradients_are_refused() -> None:
    x, cluster, anchors = clusters(30, 4, 3, torch.float32)
    with pytest.raises(ValueError, match="no gradient"):
        merging.merge_into_anchors(x.requires_grad_(), cluster, anchors, weight=0.6)
