"""Taps the last block of a Qwen vision tower, and makes rotated queries and keys from the record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from tango.annotations import Float

if TYPE_CHECKING:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention


@contextmanager
def tap_block(block: nn.Module, attention: Qwen2_5_VLVisionAttention) -> Iterator[dict[str, Tensor]]:
    """While entered, record "qkv", "cos" and "sin" that a block's attention computes, and the block's output, "hidden".

    The tower keeps its attention implementation. Only calls from the current thread are recorded.
    """
    record: dict[str, Tensor] = {}
    owner = threading.get_ident()

    def note_rotation(_module: nn.Module, _args: tuple[object, ...], kwargs: dict[str, tuple[Tensor, Tensor]]) -> None:
        if threading.get_ident() == owner:
            record["cos"], record["sin"] = kwargs["position_embeddings"]

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            if threading.get_ident() == owner:
                record[name] = output.detach()

        return hook

    handles = [
        attention.register_forward_pre_hook(note_rotation, with_kwargs=True),
        attention.qkv.register_forward_hook(note("qkv")),
        block.register_forward_hook(note("hidden")),
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def queries_or_keys(part: dict[str, Tensor], num_heads: int, name: Literal["q", "k"]) -> Float[Tensor, "T heads p d"]:
    """Rotated queries or keys of one video's patches, in the tower's order.

    Args:
        part: the video's rows (T, p, ...) of the record of `tap_block`.
    """
    x = part["qkv"].unflatten(-1, (3, num_heads, -1))[..., "qk".index(name), :, :]
    return rotate(x, part["cos"], part["sin"]).transpose(1, 2)


def rotate(
    x: Float[Tensor, "T p heads d"], cos: Float[Tensor, "T p d"], sin: Float[Tensor, "T p d"]
) -> Float[Tensor, "T p heads d"]:
    """Apply rotary positions in float32; channel i turns with channel i + d / 2."""
    a, b = x.float().chunk(2, dim=-1)
    turned = x.float() * cos.float()[..., None, :] + torch.cat([-b, a], dim=-1) * sin.float()[..., None, :]
    return turned.to(x.dtype)


def window_order(grid: tuple[int, int], side: int) -> Tensor:
    """Row-major indices of a frame's merge units in the order of the tower's windows.

    Windows of `side` x `side` units follow each other row by row; those at the right and lower border may be smaller.

    Example:
        >>> window_order((2, 3), side=2)
        tensor([0, 1, 3, 4, 2, 5])
    """
    H, W = grid
    index = torch.arange(H * W).view(H, W)
    windows = [index[y : y + side, x : x + side].flatten() for y in range(0, H, side) for x in range(0, W, side)]
    return torch.cat(windows)
