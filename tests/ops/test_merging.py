"""tango.ops.merging: clusters averaged into their anchors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tango.ops.merging import (
    add_to_anchors,
    cluster_means,
    merge_into_anchors,
    merge_others_into_anchors,
)

# Rows 0, 2, 5 form cluster 0 around row 2, row 3 is cluster 1 alone, row 1 and 4 belong to none.
X = torch.tensor([[1.0, 10.0], [99.0, 99.0], [4.0, 40.0], [7.0, 70.0], [-99.0, 0.0], [7.0, 10.0]])
CLUSTER, ANCHORS = torch.tensor([0, 2, 0, 1, 2, 0]), torch.tensor([2, 3])
MEAN, ALONE = [4.0, 20.0], [7.0, 70.0]


def merge_by_loops(x: Tensor, cluster: Tensor, anchors: Tensor, weight: float) -> Tensor:
    rows = []
    for c, anchor in enumerate(anchors.tolist()):
        members = x[cluster == c].double()
        w = weight and max(weight, 1 / len(members))
        rows.append(w * x[anchor].double() + (1 - w) * members.mean(0))
    return torch.stack(rows).float()


@pytest.mark.parametrize(
    ("weight", "merged"),
    [
        (0.0, MEAN),  # the plain mean, the anchor in it
        (0.6, [4.0, 0.6 * 40 + 0.4 * 20]),
        (0.5, [4.0, 30.0]),
        (0.2, [4.0, 1 / 3 * 40 + 2 / 3 * 20]),  # 1 / cluster size is larger
        (1.0, [4.0, 40.0]),
    ],
)
def test_by_hand(weight: float, merged: list[float]) -> None:
    out = merge_into_anchors(X, CLUSTER, ANCHORS, weight=weight)
    torch.testing.assert_close(out, torch.tensor([merged, ALONE]))


def test_rows_follow_the_order_of_the_anchors() -> None:
    cluster = torch.tensor([1, 2, 1, 0, 2, 1])  # the same clusters, numbered the other way round
    out = merge_into_anchors(X, cluster, ANCHORS.flip(0), weight=0.0)
    torch.testing.assert_close(out, torch.tensor([ALONE, MEAN]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
def test_a_cluster_of_one_is_its_anchor_to_the_last_bit(weight: float, dtype: torch.dtype) -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    every = torch.arange(50)
    assert torch.equal(merge_into_anchors(x, every, every, weight=weight), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weight_one_keeps_the_anchors_to_the_last_bit(dtype: torch.dtype) -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    anchors = torch.tensor([3, 17, 42])
    cluster = torch.arange(50) % 3
    cluster[anchors] = torch.arange(3)
    assert torch.equal(merge_into_anchors(x, cluster, anchors, weight=1.0), x[anchors])


@given(st.integers(0, 99), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.35, 0.6, 0.9, 1.0]))
def test_equals_loops(seed: int, C: int, weight: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 5, generator=g)
    cluster = torch.randint(0, C + 1, (20,), generator=g)
    anchors = torch.randperm(20, generator=g)[:C]
    cluster[anchors] = torch.arange(C)
    out = merge_into_anchors(x, cluster, anchors, weight=weight)
    torch.testing.assert_close(out, merge_by_loops(x, cluster, anchors, weight), rtol=1e-5, atol=1e-6)


def test_no_clusters() -> None:
    out = merge_into_anchors(X, torch.zeros(6, dtype=torch.long), torch.empty(0, dtype=torch.long), weight=0.6)
    assert out.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_clusters_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((5000, 3), 60.0, dtype=dtype)  # float16 ends at 65 504, bfloat16 stops counting at 256 ones
    out = merge_into_anchors(x, torch.zeros(5000, dtype=torch.long), torch.tensor([9]), weight=0.0)
    assert out.dtype == dtype
    assert out.tolist() == [[60.0] * 3]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_blocks_change_nothing(cut_into_blocks: Callable[[int], None], size: int) -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).half()
    cluster = torch.arange(40) % 4
    whole = merge_into_anchors(x, cluster, torch.arange(3), weight=0.6)
    cut_into_blocks(size)
    assert torch.equal(merge_into_anchors(x, cluster, torch.arange(3), weight=0.6), whole)


def test_gradients_reach_every_member_by_its_share() -> None:
    x = X.clone().requires_grad_()
    merge_into_anchors(x, CLUSTER, ANCHORS, weight=0.6).sum().backward()
    assert x.grad is not None
    member, anchor = 0.4 / 3, 0.6 + 0.4 / 3
    torch.testing.assert_close(x.grad[:, 0], torch.tensor([member, 0.0, anchor, 1.0, 0.0, member]))


def test_leaves_its_input_alone() -> None:
    before = X.clone(), CLUSTER.clone()
    merge_into_anchors(X, CLUSTER, ANCHORS, weight=0.6)
    assert torch.equal(X, before[0])
    assert torch.equal(CLUSTER, before[1])


class TestAddToAnchors:
    CLUSTER = torch.tensor([0, 2, 2, 2, 2, 0])  # rows 0 and 5 belong to anchor 2, none to anchor 3

    def test_by_hand(self) -> None:
        out = add_to_anchors(X, self.CLUSTER, ANCHORS)
        assert out.tolist() == [[4 + 4, 40 + 10], ALONE]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_an_empty_cluster_leaves_its_anchor_to_the_last_bit(self, dtype: torch.dtype) -> None:
        x = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
        out = add_to_anchors(x, torch.full((50,), 20), torch.arange(20))
        assert out.dtype == dtype
        assert torch.equal(out, x[:20])

    def test_gradients_reach_anchors_and_members(self) -> None:
        x = X.clone().requires_grad_()
        add_to_anchors(x, self.CLUSTER, ANCHORS).sum().backward()
        assert x.grad is not None
        assert x.grad[:, 0].tolist() == [0.5, 0, 1, 1, 0, 0.5]


@pytest.mark.parametrize("anchors_inside", [True, False])
@pytest.mark.parametrize(
    ("weight", "merged"),
    [
        (0.6, [0.6 * 4 + 0.4 * 4, 0.6 * 40 + 0.4 * 10]),  # the others' mean is (4, 10)
        (0.1, [4.0, 40 / 3 + 2 / 3 * 10]),  # 1 / cluster size is larger
        (1.0, [4.0, 40.0]),
    ],
)
def test_others_alone_by_hand(weight: float, merged: list[float], anchors_inside: bool) -> None:
    cluster = CLUSTER if anchors_inside else CLUSTER.index_fill(0, ANCHORS, 2)
    found = merge_others_into_anchors(X, cluster, ANCHORS, weight=weight)
    torch.testing.assert_close(found, torch.tensor([merged, ALONE]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_without_anchors(dtype: torch.dtype) -> None:
    before = X.clone()
    assert torch.equal(cluster_means(X.to(dtype), CLUSTER, 2), torch.tensor([MEAN, ALONE]).to(dtype))
    assert torch.equal(X, before)
