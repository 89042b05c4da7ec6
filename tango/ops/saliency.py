"""Saliency: how much each visual token matters to the vision tower, read from the last of its blocks that is used.

A saliency is a function of a `TowerBlock`, known by a name. Two come from appendix B.1 of arXiv:2604.09547; others are
added with `register_saliency`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from tango.annotations import Float
from tango.containers import Signal
from tango.errors import MissingSignalError, OptionError, UnknownNameError
from tango.extensions import load_group
from tango.ops.attention import mean_received_attention

# The query of "p-attn": that of SigLIP's pooling head or of the tower's CLS token; where a tower has neither, the mean
# query of the frame.
PoolingQuery = Literal["head", "cls", "mean"]


@runtime_checkable
class AttentionPool(Protocol):
    """An attention-pooling head; `tango.models.pooling_head.PoolingHead` is one."""

    def saliency(self, hidden: Tensor) -> Tensor: ...  # (T, p, P) -> (T, p)

    def frame_embeds(self, hidden: Tensor) -> Tensor: ...  # (T, p, P) -> (T, P)


@dataclass(kw_only=True, eq=False)
class TowerBlock:
    """The last used block of a vision tower on T frames: all that a saliency may look at.

    A frame has p patches in the tower's own order, and N tokens, row-major; prefixed = prefix + p. Queries
    and keys are made when they are first asked for.
    """

    grid: tuple[int, int]  # (H, W) of the N tokens
    hidden: Float[Tensor, "T p P"]  # the block's output, patches alone
    project: Callable[[Literal["q", "k"]], Tensor]  # makes `queries` or `keys`
    scale: float  # of queries times keys
    pool: Callable[[Tensor], Tensor]  # (T, p, any) -> (T, N, any), as the model pools patches into tokens
    pooling_query: PoolingQuery
    head: AttentionPool | None = None
    cls: Float[Tensor, "T P"] | None = None  # the block's output at the CLS token, where there is one

    @property
    def prefix(self) -> int:
        """Tokens before the patches, in queries and keys: 1 for a CLS token, else 0."""
        return int(self.cls is not None)

    @cached_property
    def queries(self) -> Float[Tensor, "T heads prefixed d"]:
        """Queries of the block, rotated where the tower rotates."""
        return self.project("q")

    @cached_property
    def keys(self) -> Float[Tensor, "T heads prefixed d"]:
        """Keys of the block, rotated where the tower rotates."""
        return self.project("k")


Saliency = Callable[[TowerBlock], Tensor]
S = TypeVar("S", bound=Saliency)

GROUP = "tango.saliency"  # of entry points

_SALIENCY: dict[str, Saliency] = {}


def register_saliency(name: str) -> Callable[[S], S]:
    """Decorator: register a function as the saliency that `tango.prune(..., saliency=name)` computes.

    The function gets a `TowerBlock` and returns (T, N), not negative; no gradient flows through it. It raises
    MissingSignalError where a tower lacks what it reads.

    Raises:
        ValueError: the name is taken or not lower-case words joined by hyphens.
    Example:
        >>> @tango.register_saliency("key-norm")
        ... def key_norm(block):
        ...     norms = block.keys.norm(dim=-1).mean(1)[:, block.prefix:]  # (T, p)
        ...     return block.pool(norms[..., None])[..., 0]
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a saliency's name must be lower-case words joined by hyphens, got {name!r}")
    if name in _SALIENCY:
        raise ValueError(f"saliency {name!r} is already registered by {_SALIENCY[name].__qualname__}")

    def add(function: S) -> S:
        _SALIENCY[name] = function
        return function

    return add


def available_saliency() -> list[str]:
    """Names that `saliency=` accepts, sorted.

    Example:
        >>> "p-attn" in tango.available_saliency()
        True
    """
    load_group(GROUP)
    return sorted(_SALIENCY)


def saliency_function(name: str) -> Saliency:
    """The saliency registered as `name`.

    Raises:
        UnknownNameError: no such saliency; the message lists them.
    """
    if name not in _SALIENCY:
        load_group(GROUP)
    if name not in _SALIENCY:
        raise UnknownNameError("saliency", name, _SALIENCY, load_group(GROUP))
    return _SALIENCY[name]


@torch.no_grad()
def block_signals(block: TowerBlock, wants: Signal, saliency: str) -> dict[str, Tensor]:
    """Compute the wanted signals that a tower's block can give, by the names of their fields in `VisualTokens`.

    Keys are averaged over heads, and over the patches of a token as the model pools them.

    Args:
        saliency: name of the saliency to compute.
    Raises:
        OptionError: the saliency returns another shape than (T, N).
        MissingSignalError: the saliency reads what this tower lacks.
    Source: of the keys, the token similarity of VisionZip (arXiv:2412.04467).
    """
    signals = {}
    if Signal.SALIENCY in wants:
        values = saliency_function(saliency)(block)
        expected = (len(block.hidden), block.grid[0] * block.grid[1])
        if tuple(values.shape) != expected:
            raise OptionError(f"saliency {saliency!r} must return (T, N) = {expected}, got {tuple(values.shape)}")
        signals["saliency"] = values.float()
    if Signal.KEYS in wants:
        signals["keys"] = block.pool(block.keys[:, :, block.prefix :].mean(1))
    if Signal.FRAME_EMBEDS in wants and block.head is not None:
        signals["frame_embeds"] = block.head.frame_embeds(block.hidden)
    elif Signal.FRAME_EMBEDS in wants and block.cls is not None:
        signals["frame_embeds"] = block.cls
    return signals


@register_saliency("p-attn")
def pooling_attention(block: TowerBlock) -> Tensor:
    """Attention that each token receives from the tower's pooling query, averaged over heads.

    Source: appendix B.1 of arXiv:2604.09547, for SigLIP's head and for the mean query of Qwen2.5-VL's tower.
    """
    if block.pooling_query == "head":
        if block.head is None:
            raise MissingSignalError("'p-attn' saliency needs SigLIP's attention-pooling head, which is not there")
        return block.pool(block.head.saliency(block.hidden)[..., None])[..., 0]
    if block.pooling_query == "cls":
        logits = block.queries[:, :, :1] @ block.keys.mT * block.scale  # (T, heads, 1, prefixed)
        received = logits.softmax(dim=-1, dtype=torch.float32).mean((1, 2))
        return block.pool(received[:, block.prefix :, None])[..., 0]
    heads = block.keys.shape[1]
    keys = block.pool(block.keys.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1))  # (T, N, heads, d)
    logits = torch.einsum("thd,tnhd->thn", block.queries.mean(2), keys) * block.scale
    return logits.softmax(dim=-1, dtype=torch.float32).mean(1)


@register_saliency("attn")
def mean_attention(block: TowerBlock) -> Tensor:
    """Attention that each token's patches receive from all patches of their frame, averaged over heads and queries.

    Source: appendix B.1 of arXiv:2604.09547, after VisionZip (arXiv:2412.04467).
    """
    received = mean_received_attention(block.queries, block.keys, scale=block.scale)
    return block.pool(received[:, block.prefix :, None])[..., 0]
