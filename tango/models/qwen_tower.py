"""A tap on the last block of a Qwen vision tower; saliency and mean keys from what it records."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tango.ops.attention import mean_received_attention
from tango.ops.blocks import blocks
from tango.shapes import Float


@contextmanager
def tap_attention(attention: Any) -> Iterator[dict[str, Tensor]]:
    """Record "qkv", "cos" and "sin" of one attention module while inside, as it computes them anyway.

    The tower keeps whatever attention implementation it has. Only calls from the current thread are recorded.
    """
    record: dict[str, Tensor] = {}
    owner = threading.get_ident()

    def note_rotation(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == owner:
            record["cos"], record["sin"] = kwargs["position_embeddings"]

    def note_qkv(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        if threading.get_ident() == owner:
            record["qkv"] = output.detach()

    handles = [
        attention.register_forward_pre_hook(note_rotation, with_kwargs=True),
        attention.qkv.register_forward_hook(note_qkv),
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def saliency(
    record: dict[str, Tensor], first: int, shape: tuple[int, int, int], attention: Any, *, pooled_query: bool
) -> Float[Tensor, "T N"]:
    """Saliency of one video's merge units, in the order in which the tower holds them.

    Args:
        record: from `tap_attention`.
        first: row at which the video starts.
        shape: (T, N, patches per unit).
        pooled_query: attention of the frame's mean query to the mean key of each unit ("p-attn"); else the attention
            that patches receive from all of their frame, averaged over the unit ("attn").
    Source: appendix B.1 of arXiv:2604.09547.
    """
    T, N, unit = shape
    qkv, cos, sin = (
        record[name][first : first + T * N * unit].unflatten(0, (T, N * unit)) for name in ("qkv", "cos", "sin")
    )
    result = []
    for block in blocks(T, 8 * qkv[0].numel(), qkv.device):
        q, k, _ = qkv[block].unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
        q, k = rotate(q, cos[block], sin[block]), rotate(k, cos[block], sin[block])
        if pooled_query:
            logits = torch.einsum("thd,tnhd->thn", q.mean(1), k.unflatten(1, (N, unit)).mean(2)) * attention.scaling
            result.append(logits.softmax(dim=-1, dtype=torch.float32).mean(1))
        else:
            received = mean_received_attention(q.transpose(1, 2), k.transpose(1, 2), scale=attention.scaling)
            result.append(received.unflatten(1, (N, unit)).mean(-1))
    return torch.cat(result)


@torch.no_grad()
def mean_keys(
    record: dict[str, Tensor], first: int, shape: tuple[int, int, int], attention: Any
) -> Float[Tensor, "T N d"]:
    """Rotated keys of one video's merge units, averaged over their patches and over heads, in the tower's order.

    Args: as those of `saliency`.
    Source: LightCompress's VisionZip for Qwen2.5-VL, after arXiv:2412.04467.
    """
    T, N, unit = shape
    qkv, cos, sin = (
        record[name][first : first + T * N * unit].unflatten(0, (T, N * unit)) for name in ("qkv", "cos", "sin")
    )
    keys = qkv.unflatten(-1, (3, attention.num_heads, -1))[..., 1, :, :]
    result = [
        rotate(keys[block], cos[block], sin[block]).mean(-2) for block in blocks(T, 8 * keys[0].numel(), qkv.device)
    ]
    return torch.cat(result).unflatten(1, (N, unit)).mean(2)


def rotate(
    x: Float[Tensor, "T P heads d"], cos: Float[Tensor, "T P d"], sin: Float[Tensor, "T P d"]
) -> Float[Tensor, "T P heads d"]:
    """Apply rotary positions, halves against halves, in float32."""
    a, b = x.float().chunk(2, dim=-1)
    turned = x.float() * cos.float()[..., None, :] + torch.cat([-b, a], dim=-1) * sin.float()[..., None, :]
    return turned.to(x.dtype)


def window_order(grid: tuple[int, int], side: int) -> Tensor:
    """Row-major indices of a frame's merge units in the order of the tower's windows.

    Windows of `side` x `side` units follow each other row by row, ragged at the right and lower border.
    """
    H, W = grid
    index = torch.arange(H * W).view(H, W)
    windows = [index[y : y + side, x : x + side].flatten() for y in range(0, H, side) for x in range(0, W, side)]
    return torch.cat(windows)
