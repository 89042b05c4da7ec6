"""A SigLIP vision tower, run up to the block whose output is used, and what methods want to know of that block."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tango.ops.attention import mean_received_attention
from tango.shapes import Float


class TowerStates(NamedTuple):
    """What a tower makes of some frames."""

    hidden: Float[Tensor, "T N P"]  # output of the last used block
    attention: Float[Tensor, "T N"] | None  # that each patch receives in it
    keys: Float[Tensor, "T N d"] | None  # of its patches, averaged over heads


def run_tower(tower: Any, depth: int, pixels: Float[Tensor, "T 3 h w"], *, attention: bool, keys: bool) -> TowerStates:
    """Run the first `depth` blocks of a tower; what the stock tower does after them would be thrown away.

    One hidden state exists at a time. The tower keeps whatever attention implementation it has.
    """
    # The patch convolution leaves its channels in front; every residual sum and norm would run over strided memory.
    hidden = tower.embeddings(pixels).contiguous()
    for block in tower.encoder.layers[: depth - 1]:
        hidden = block(hidden, None)
    last = tower.encoder.layers[depth - 1]
    received = received_attention(last, hidden) if attention else None
    averaged = mean_keys(last, hidden) if keys else None
    return TowerStates(last(hidden, None), received, averaged)


@torch.no_grad()
def received_attention(block: Any, hidden: Tensor) -> Tensor:
    """Mean attention that each patch receives in one encoder block, from its input (T, N, P): (T, N), fp32."""
    normed = block.layer_norm1(hidden)
    attention = block.self_attn

    def heads(projection: nn.Linear) -> Tensor:
        return projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    return mean_received_attention(heads(attention.q_proj), heads(attention.k_proj), scale=attention.scale)


@torch.no_grad()
def mean_keys(block: Any, hidden: Tensor) -> Tensor:
    """Attention keys of each patch in one encoder block, from its input (T, N, P), averaged over heads: (T, N, d).

    Source: the token similarity of VisionZip (arXiv:2412.04467).
    """
    keys = block.self_attn.k_proj(block.layer_norm1(hidden))
    return keys.unflatten(-1, (block.self_attn.num_heads, -1)).mean(dim=-2)
