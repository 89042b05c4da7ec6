"""Choosing tokens to keep as they are."""

from __future__ import annotations

from torch import Tensor

from tango.annotations import Float, Int
from tango.ops.device import to_device


def mask_sinks(saliency: Float[Tensor, "T N"], sink_positions: tuple[int, ...]) -> Float[Tensor, "T N"]:
    """Set the saliency of attention sinks to zero, in a copy.

    Source: appendix B.3 of arXiv:2604.09547.
    """
    if not sink_positions:
        return saliency
    return saliency.index_fill(1, to_device(sink_positions, saliency.device), 0)


def top_k(scores: Float[Tensor, "B N"], k: int) -> Int[Tensor, "B k"]:
    """Positions of the k highest scores in every row, best first. Ties: the lower position."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
