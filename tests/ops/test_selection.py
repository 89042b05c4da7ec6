"""tango.ops.selection: sinks and top-k."""

from __future__ import annotations

import pytest
import torch

from tango.ops.selection import mask_sinks, top_k


class TestMaskSinks:
    def test_zeroes_the_sinks_of_every_frame_in_a_copy(self) -> None:
        saliency = torch.tensor([[5.0, 1.0, 7.0], [6.0, 2.0, 8.0]])
        masked = mask_sinks(saliency, (0, 2))
        assert masked.tolist() == [[0, 1, 0], [0, 2, 0]]
        assert saliency.tolist() == [[5, 1, 7], [6, 2, 8]]

    def test_without_sinks_nothing_changes(self) -> None:
        saliency = torch.rand(2, 3)
        assert torch.equal(mask_sinks(saliency, ()), saliency)


class TestTopK:
    def test_best_first(self) -> None:
        assert top_k(torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0]]), 2).tolist() == [[1, 2], [0, 1]]

    def test_ties_go_to_the_lower_position(self) -> None:
        scores = torch.zeros(1, 500)
        scores[0, [100, 400]] = 1.0
        assert top_k(scores, 5).tolist() == [[100, 400, 0, 1, 2]]

    @pytest.mark.parametrize("k", [0, 1, 3])
    def test_keeps_k(self, k: int) -> None:
        assert top_k(torch.rand(2, 3), k).shape == (2, k)
