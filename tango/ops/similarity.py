"""Cosine similarities that tie exactly where rows are equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.ops.blocks import blocks
from tango.shapes import Float

_TICKS = 2.0**18
_MAX_STRIPPED, _STRIP = 200, 64  # rows


def unit_rows(x: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets D"]:
    """Rows scaled to length 1, in float32. Rows of zeros stay zeros."""
    return F.normalize(x.float(), dim=-1)


def unit_cosines(a: Float[Tensor, "*sets A D"], b: Float[Tensor, "*sets E D"]) -> Float[Tensor, "*sets A E"]:
    """Cosines between unit rows, rounded to multiples of 2**-18.

    That is several times the error of the float32 product: equal rows have equal cosines, whatever the matrix library,
    and a choice between them can go by their order.
    """
    return _rounded(a @ b.mT)


def unit_self_cosines(a: Float[Tensor, "*sets A D"]) -> Float[Tensor, "*sets A A"]:
    """`unit_cosines(a, a)`, for about half the work on a CPU."""
    return _rounded(gram(a))


def gram(x: Float[Tensor, "*sets M D"]) -> Float[Tensor, "*sets M M"]:
    """`x @ x.mT`; on a CPU only about half of it is multiplied, and each set by itself."""
    if x.device.type != "cpu":
        return x @ x.mT
    M = x.shape[-2]
    products = x.new_empty(*x.shape[:-1], M)
    for set_, out in zip(x.reshape(-1, *x.shape[-2:]), products.view(-1, M, M), strict=True):
        _fill_gram(set_, out)
    return products


def _fill_gram(x: Float[Tensor, "M D"], out: Float[Tensor, "M M"]) -> None:
    """Halves of many rows, strips of few: what the matrix library does fastest."""
    M = len(x)
    if M > _MAX_STRIPPED:
        half = -(-M // 32) * 16
        _fill_gram(x[:half], out[:half, :half])
        _fill_gram(x[half:], out[half:, half:])
        torch.mm(x[:half], x[half:].mT, out=out[:half, half:])
        out[half:, :half] = out[:half, half:].mT
        return
    for start in range(0, M, _STRIP):
        stop = min(start + _STRIP, M)
        torch.mm(x[start:stop], x[start:].mT, out=out[start:stop, start:])
        out[stop:, start:stop] = out[start:stop, stop:].mT


def _rounded(cosines: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """To ticks, in place."""
    return cosines.mul_(_TICKS).round_().div_(_TICKS)


def paired_cosines(a: Float[Tensor, "*sets D"], b: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets"]:
    """Cosines between unit rows at the same place, rounded like `unit_cosines`."""
    return _rounded((a * b).sum(-1))


def mean_pair_cosines(x: Float[Tensor, "T N D"], lengths: Sequence[int]) -> Float[Tensor, "S N"]:
    """Mean cosine between the tokens at one place, over all pairs of a segment's frames; -1 where there are none.

    Args:
        lengths: frames per segment, T in all.
    """
    _, N, D = x.shape
    cosines = torch.full((len(lengths), N), -1.0, device=x.device)
    for segment, frames, length in zip(cosines, x.split(list(lengths)), lengths, strict=True):
        if length == 1:
            continue
        total, squares = torch.zeros(N, D, device=x.device), torch.zeros(N, device=x.device)
        for block in blocks(length, N * D * 4, x.device):
            unit = unit_rows(frames[block])
            total += unit.sum(0)
            squares += unit.square().sum((0, 2))
        # The square of the sum holds every pair twice, and every row with itself.
        segment.copy_((total.square().sum(1) - squares) / (length * (length - 1)))
    return cosines
