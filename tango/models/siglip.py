"""Taps on a SigLIP vision tower: the hidden states that are used, and the attention inside its last used block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tango.ops.attention import mean_received_attention


@contextmanager
def tap_block(block: Any, *, attention: bool, keys: bool = False) -> Iterator[dict[str, Tensor]]:
    """Record a block's output ("hidden") and, on request, what `received_attention` ("attn") and `mean_keys` ("keys")
    make of its input, while inside.

    The tower keeps whatever attention implementation it has. Only calls from the current thread are recorded.
    """
    record: dict[str, Tensor] = {}
    owner = threading.get_ident()

    def note_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == owner:
            record["hidden"] = output[0] if isinstance(output, tuple) else output

    def note_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != owner:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        if attention:
            record["attn"] = received_attention(module, hidden)
        if keys:
            record["keys"] = mean_keys(module, hidden)

    handles = [block.register_forward_hook(note_output)]
    if attention or keys:
        handles.append(block.register_forward_pre_hook(note_input, with_kwargs=True))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


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
