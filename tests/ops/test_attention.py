"""tango.ops.attention: saliency from a pooling head's probe, and from full self-attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tango.ops.attention import fold_probe, mean_received_attention, probe_attention


@pytest.fixture
def head() -> tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm]:
    """A pooling head as SigLIP has it: probe, attention of 4 heads with biases, layer norm; P = 32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention, norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32, eps=1e-6)
        for parameter in [*attention.parameters(), *norm.parameters()]:
            nn.init.normal_(parameter)
        return torch.randn(1, 1, 32), attention.requires_grad_(False), norm.requires_grad_(False)


def hidden_states(T: int = 5, N: int = 9) -> Tensor:
    return 3 * torch.randn(T, N, 32, generator=torch.Generator().manual_seed(1)) + 1


def p_attn(head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm], hidden: Tensor) -> Tensor:
    probe, attention, norm = head
    folded = fold_probe(probe.flatten(), attention.in_proj_weight, attention.in_proj_bias, attention.num_heads)
    return probe_attention(hidden, folded, norm.weight, norm.bias, eps=norm.eps)


class TestProbeAttention:
    def test_equals_the_weights_of_multihead_attention(
        self, head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm]
    ) -> None:
        probe, attention, norm = head
        hidden = hidden_states()
        keys = norm(hidden)
        _, weights = attention(probe.expand(len(hidden), -1, -1), keys, keys, average_attn_weights=True)
        torch.testing.assert_close(p_attn(head, hidden), weights[:, 0], rtol=1e-4, atol=1e-6)

    def test_folded_probe_has_one_vector_per_head(
        self, head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm]
    ) -> None:
        probe, attention, _ = head
        folded = fold_probe(probe.flatten(), attention.in_proj_weight.half(), attention.in_proj_bias.half(), 4)
        assert folded.shape == (4, 32)
        assert folded.dtype == torch.float32

    def test_each_frame_sums_to_one(self, head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm]) -> None:
        torch.testing.assert_close(p_attn(head, hidden_states()).sum(-1), torch.ones(5))

    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_frames_do_not_influence_each_other(
        self,
        head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm],
        cut_into_blocks: Callable[[int], None],
        size: int,
    ) -> None:
        whole = p_attn(head, hidden_states())
        cut_into_blocks(size)
        torch.testing.assert_close(p_attn(head, hidden_states()), whole, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(
        self, head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm], dtype: torch.dtype
    ) -> None:
        hidden = hidden_states().to(dtype)
        saliency = p_attn(head, hidden)
        assert saliency.dtype == torch.float32
        assert torch.equal(saliency, p_attn(head, hidden.float()))

    def test_leaves_its_input_alone(self, head: tuple[Tensor, nn.MultiheadAttention, nn.LayerNorm]) -> None:
        hidden = hidden_states()
        before = hidden.clone()
        p_attn(head, hidden)
        assert torch.equal(hidden, before)


class TestMeanReceivedAttention:
    @staticmethod
    def queries_and_keys(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(2)
        return torch.randn(4, 3, 7, 8, generator=g).to(dtype), torch.randn(4, 3, 7, 8, generator=g).to(dtype)

    def test_by_hand(self) -> None:
        queries = torch.tensor([[1.0], [0.0]]).view(1, 1, 2, 1)
        keys = torch.tensor([[2.0], [0.0]]).view(1, 1, 2, 1)
        to_first = torch.tensor(1.0).sigmoid().item()  # query 0: logits 1 and 0 after scaling; query 1: both 0
        expected = [[(to_first + 0.5) / 2, (1 - to_first + 0.5) / 2]]
        torch.testing.assert_close(mean_received_attention(queries, keys, scale=0.5), torch.tensor(expected))

    def test_equals_loops(self) -> None:
        queries, keys = self.queries_and_keys()
        expected = torch.zeros(4, 7)
        for t in range(4):
            for h in range(3):
                for query in queries[t, h]:
                    expected[t] += (keys[t, h] @ query / 8**0.5).softmax(0) / (3 * 7)
        torch.testing.assert_close(mean_received_attention(queries, keys, scale=8**-0.5), expected)

    def test_each_frame_sums_to_one(self) -> None:
        received = mean_received_attention(*self.queries_and_keys(), scale=0.3)
        torch.testing.assert_close(received.sum(-1), torch.ones(4))

    @pytest.mark.parametrize("size", [1, 3, 4])
    def test_blocks_change_nothing(self, cut_into_blocks: Callable[[int], None], size: int) -> None:
        whole = mean_received_attention(*self.queries_and_keys(), scale=0.3)
        cut_into_blocks(size)
        blocked = mean_received_attention(*self.queries_and_keys(), scale=0.3)
        torch.testing.assert_close(blocked, whole, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_softmax_of_half_precision_is_float32(self, dtype: torch.dtype) -> None:
        received = mean_received_attention(*self.queries_and_keys(dtype), scale=0.3)
        assert received.dtype == torch.float32
        torch.testing.assert_close(received.sum(-1), torch.ones(4))
