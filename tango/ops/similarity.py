"""Cosine similarities that tie exactly where rows are equal."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tango.shapes import Float

_TICKS = 2.0**18


def unit_rows(x: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets D"]:
    """Rows scaled to length 1, in float32. Rows of zeros stay zeros."""
    return F.normalize(x.float(), dim=-1)


def unit_cosines(a: Float[Tensor, "*sets A D"], b: Float[Tensor, "*sets E D"]) -> Float[Tensor, "*sets A E"]:
    """Cosines between unit rows, rounded to multiples of 2**-18.

    That is several times the error of the float32 product: equal rows have equal cosines, whatever the matrix library,
    and a choice between them can go by their order.
    """
    return (a @ b.mT).mul_(_TICKS).round_().div_(_TICKS)


def paired_cosines(a: Float[Tensor, "*sets D"], b: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets"]:
    """Cosines between unit rows at the same place, rounded like `unit_cosines`."""
    return (a * b).sum(-1).mul_(_TICKS).round_().div_(_TICKS)
