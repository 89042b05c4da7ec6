"""Taps the last block of a tower like Qwen's, and makes rotated queries and keys from the record."""

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


# Of attention modules: one projection of queries, keys and values, or three of the same width.
PROJECTIONS = (("qkv",), ("q", "k", "v"), ("q_proj", "k_proj", "v_proj"))


def projections(attention: nn.Module) -> list[nn.Module]:
    """The projections of an attention module: one that makes queries, keys and values, or one for each."""
    own = dict(attention.named_children())
    return next([own[name] for name in names] for names in PROJECTIONS if names[0] in own)


@contextmanager
def tap_block(block: nn.Module, attention: Qwen2_5_VLVisionAttention) -> Iterator[dict[str, Tensor]]:
    """While entered, record "q" and "k" that a block's attention projects, "cos" and "sin" by which it rotates them,
    and the block's output, "hidden".

    The tower keeps its attention implementation. Only calls from the current thread are recorded.
    """
    record: dict[str, Tensor] = {}
    owner = threading.get_ident()

    def note_rotation(_module: nn.Module, _args: tuple[object, ...], kwargs: dict[str, tuple[Tensor, Tensor]]) -> None:
        if threading.get_ident() == owner:
            record["cos"], record["sin"] = kwargs["position_embeddings"]

    def note(*names: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            if threading.get_ident() == owner:
                record.update(zip(names, output.detach().chunk(len(names), dim=-1), strict=True))

        return hook

    linear = projections(attention)
    noted = [("q", "k", "v")] if len(linear) == 1 else [("q",), ("k",)]
    handles = [
        attention.register_forward_pre_hook(note_rotation, with_kwargs=True),
        *(module.register_forward_hook(note(*names)) for module, names in zip(linear, noted, strict=False)),
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
    x = part[name].unflatten(-1, (num_heads, -1))
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
