"""tango.batched.kernels.merging, against `tango.ops.merging.merge_into_anchors` and loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tango.ops.merging import merge_into_anchors

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from tango.batched.kernels import merging

KERNEL = "tango.batched.kernels.merging.merge_over_frames"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Interpreter = Callable[..., Tensor]


def clusters(M: int, D: int, C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, the cluster of each or C for none, and the anchors, one in each cluster."""
    g = torch.Generator().manual_seed(M)
    x, cluster, anchors = torch.randn(M, D, generator=g), torch.randint(0, C + 1, (M,), generator=g), torch.randperm(M)
    cluster[anchors[:C]] = torch.arange(C)
    return x.to(dtype), cluster, anchors[:C]


def of_one_frame(interpreted: Interpreter, x: Tensor, cluster: Tensor, anchors: Tensor, weight: float) -> Tensor:
    return interpreted(KERNEL, x, cluster, anchors, torch.ones_like(anchors), weight=weight, stride=1)


def merged_by_loops(x: Tensor, cluster: Tensor, anchors: Tensor, spans: Tensor, weight: float, stride: int) -> Tensor:
    rows = []
    for c, (anchor, span) in enumerate(zip(anchors.tolist(), spans.tolist(), strict=True)):
        members = x[cluster == c].double()
        w = weight and max(weight, span / len(members))
        rows.append(w * x[anchor::stride][:span].double().mean(0) + (1 - w) * members.mean(0))
    return torch.stack(rows).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0, 0.1, 0.35, 0.6, 0.9, 1.0])
def test_equals_the_library(interpreted: Interpreter, weight: float, dtype: torch.dtype) -> None:
    x, cluster, anchors = clusters(60, 300, 7, dtype)  # more than one block of members and of channels
    found = of_one_frame(interpreted, x, cluster, anchors, weight)
    expected = merge_into_anchors(x, cluster, anchors, weight=weight)
    assert found.dtype == dtype
    # Rounded to half precision, sums that differ in float32's last bits can be neighbours.
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.6])
def test_anchors_that_are_means_over_frames(interpreted: Interpreter, weight: float) -> None:
    # Five frames of seven positions. Position 1 is averaged over frames 0 to 3 and takes position 4 of frame 2 in;
    # position 2 over frames 1 and 2, on its own; position 6 of frame 4 takes position 5 of that frame in.
    x = torch.randn(35, 20, generator=torch.Generator().manual_seed(2))
    cluster = torch.full((35,), 3)
    cluster[[1, 8, 15, 22, 18]], cluster[[9, 16]], cluster[[34, 33]] = 0, 1, 2
    anchors, spans = torch.tensor([1, 9, 34]), torch.tensor([4, 2, 1])
    found = interpreted(KERNEL, x, cluster, anchors, spans, weight=weight, stride=7)
    torch.testing.assert_close(found, merged_by_loops(x, cluster, anchors, spans, weight, 7), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
def test_a_cluster_of_one_is_its_anchor_to_the_last_bit(
    interpreted: Interpreter, weight: float, dtype: torch.dtype
) -> None:
    x, every = torch.randn(20, 33, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(20)
    assert torch.equal(of_one_frame(interpreted, x, every, every, weight), x)


def test_weight_one_keeps_the_anchors_to_the_last_bit(interpreted: Interpreter) -> None:
    x, cluster, anchors = clusters(50, 33, 3, torch.float32)
    assert torch.equal(of_one_frame(interpreted, x, cluster, anchors, 1.0), x[anchors])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_clusters_are_summed_in_float32(interpreted: Interpreter, dtype: torch.dtype) -> None:
    x = torch.full((1200, 3), 60.0, dtype=dtype)  # float16 ends at 65 504, bfloat16 stops counting at 256 ones
    found = of_one_frame(interpreted, x, torch.zeros(1200).long(), torch.tensor([9]), 0.0)
    assert found.tolist() == [[60.0] * 3]


def test_rows_may_lie_apart_in_memory(interpreted: Interpreter) -> None:
    x, cluster, anchors = clusters(30, 40, 4, torch.float32)
    apart = x.repeat_interleave(2, dim=1)[:, ::2]
    assert not apart.is_contiguous()
    found = of_one_frame(interpreted, apart, cluster, anchors, 0.6)
    assert torch.equal(found, of_one_frame(interpreted, x, cluster, anchors, 0.6))


def test_no_clusters() -> None:
    none = torch.empty(0, dtype=torch.long)
    x, cluster = torch.ones(6, 2), torch.zeros(6).long()
    assert merging.merge_over_frames(x, cluster, none, none, weight=0.6, stride=1).shape == (0, 2)


def test_gradients_are_refused() -> None:
    x, cluster, anchors = clusters(30, 4, 3, torch.float32)
    with pytest.raises(ValueError, match="no gradient"):
        merging.merge_over_frames(x.requires_grad_(), cluster, anchors, anchors, weight=0.6, stride=1)
