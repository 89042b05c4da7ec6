"""tango.batched.merging: clusters averaged into their anchors, over several frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tango.batched.merging import merge_over_frames
from tango.ops.merging import merge_into_anchors


class TestOverFrames:
    """Four frames of 3 positions. Cluster 0: positions 0 (averaged) and 1 of frames 0-2; cluster 1: all the rest."""

    CLUSTER = torch.tensor([0, 0, 1] * 3 + [1, 1, 1])
    FIRST, SPANS = torch.tensor([0, 11]), torch.tensor([3, 1])

    def merge(self, x: Tensor, weight: float) -> Tensor:
        return merge_over_frames(
            x, self.CLUSTER, self.FIRST, self.SPANS, weight=weight, stride=3, num_averaged=int(self.SPANS.sum())
        )

    @pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_equals_merging_means(self, weight: float, dtype: torch.dtype) -> None:
        x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        frames = x.float().view(4, 3, 5)
        rows = torch.cat([frames[:3].mean(0)[:2], frames[:3, 2], frames[3]])  # two means, then six tokens
        cluster = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
        expected = merge_into_anchors(rows, cluster, torch.tensor([0, 7]), weight=weight)
        torch.testing.assert_close(self.merge(x, weight), expected.to(dtype))

    @pytest.mark.parametrize("size", [1, 3, 40])
    def test_blocks_change_nothing(self, cut_into_blocks: Callable[[int], None], size: int) -> None:
        x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).half()
        whole = self.merge(x, 0.6)
        cut_into_blocks(size)
        assert torch.equal(self.merge(x, 0.6), whole)

    def test_gradients_reach_every_member_by_its_share(self) -> None:
        x = torch.zeros(12, 1, requires_grad=True)
        self.merge(x, 0.6)[0].backward()
        assert x.grad is not None
        member = 0.4 / 6  # of two means over three frames; the anchor's tokens have 0.6 between them, too
        expected = [member + 0.2, member, 0.0] * 3 + [0.0] * 3
        torch.testing.assert_close(x.grad[:, 0], torch.tensor(expected))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_clusters_of_one_stay_as_they_are(self, dtype: torch.dtype) -> None:
        x = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
        every, spans = torch.arange(40), torch.ones(40, dtype=torch.long)
        for weight in (0.0, 0.6, 1.0):
            assert torch.equal(merge_over_frames(x, every, every, spans, weight=weight, stride=1, num_averaged=40), x)
