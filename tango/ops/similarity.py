"""Cosine similarities that tie exactly between equal rows."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.annotations import Float
from tango.ops.device import chunks

_TICKS = 2.0**18
_MAX_STRIPPED, _STRIP = 200, 64  # rows
# From how many rows on a split product is faster, by compute capability. On an H200 it takes 1.6 ms instead of 2.6 at
# 4,000 rows of 3,584 numbers, but 0.88 instead of 0.65 at 2,000. For an A100 the number follows from its data sheet.
_LEAST_ROWS = {(9, 0): 3000, (8, 0): 2000}
_ONE_AT_A_TIME = threading.Lock()
_PIECE = 512  # channels multiplied at once: so narrow that errors are those of a float32 product


def unit_rows(x: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets D"]:
    """Rows scaled to length 1, in float32. Rows of zeros stay zeros."""
    return F.normalize(x.float(), dim=-1)


def unit_cosines(a: Float[Tensor, "*sets row D"], b: Float[Tensor, "*sets col D"]) -> Float[Tensor, "*sets row col"]:
    """Cosines between unit rows, rounded to multiples of 2**-18.

    That is several times the error of the float32 product: equal rows have equal cosines, whatever the matrix library,
    and the order of rows can decide between them.
    """
    return _rounded(products(a, b))


def unit_self_cosines(a: Float[Tensor, "*sets M D"]) -> Float[Tensor, "*sets M M"]:
    """`unit_cosines(a, a)`, for about half the work on a CPU."""
    return _rounded(gram(a))


def gram(x: Float[Tensor, "*sets M D"]) -> Float[Tensor, "*sets M M"]:
    """`products(x, x)`; a CPU multiplies only about half of it, set by set."""
    if x.device.type != "cpu":
        return products(x, x)
    M = x.shape[-2]
    found = x.new_empty(*x.shape[:-1], M)
    for set_, out in zip(x.reshape(-1, *x.shape[-2:]), found.view(-1, M, M), strict=True):
        _fill_gram(set_, out)
    return found


def products(a: Float[Tensor, "*sets row D"], b: Float[Tensor, "*sets col D"]) -> Float[Tensor, "*sets row col"]:
    """`a @ b.mT` in float32, even if the process lets a GPU multiply in TF32."""
    if not a.is_cuda:
        return a @ b.mT
    if a.shape[-2] >= _LEAST_ROWS.get(torch.cuda.get_device_capability(a.device), math.inf):
        return split_products(a, b)
    with _matmul_precision("ieee"):
        return a @ b.mT


def split_products(a: Float[Tensor, "*sets row D"], b: Float[Tensor, "*sets col D"]) -> Float[Tensor, "*sets row col"]:
    """`a @ b.mT` by three products on tensor cores: high by high part, and each high part by the other's low part.

    Tensor cores round sums towards zero. So they sum over pieces of the width alone, whose sums are added in float32.
    """
    found = a.new_zeros(*a.shape[:-1], b.shape[-2])
    with _matmul_precision("tf32"):
        for left, right in zip(a.split(_PIECE, dim=-1), b.split(_PIECE, dim=-1), strict=True):
            (left_high, left_low), (right_high, right_low) = _parts(left), _parts(right)
            for one, other in ((left_high, right_high), (left_high, right_low), (left_low, right_high)):
                found.baddbmm_(one, other.mT) if found.dim() == 3 else found.addmm_(one, other.mT)
    return found


def _parts(x: Float[Tensor, "*any"]) -> tuple[Tensor, Tensor]:
    """Split numbers into what TF32 holds, 11 significant bits, and the rest."""
    high = (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)
    return high, x - high


@contextmanager
def _matmul_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Set how a GPU multiplies float32 inside this context.

    PyTorch has one setting for the whole process. Tango's own threads take turns; products that another thread launches
    in the same fraction of a millisecond are affected, too.
    """
    matmul = torch.backends.cuda.matmul
    old = not hasattr(matmul, "fp32_precision")  # torch before 2.9
    name, value = ("allow_tf32", precision == "tf32") if old else ("fp32_precision", precision)
    with _ONE_AT_A_TIME:
        before = getattr(matmul, name)
        setattr(matmul, name, value)
        try:
            yield
        finally:
            setattr(matmul, name, before)


def _fill_gram(x: Float[Tensor, "M D"], out: Float[Tensor, "M M"]) -> None:
    """Write `x @ x.mT` to `out`: in halves if there are many rows, else in strips, as is fastest."""
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
    """Round to multiples of 2**-18, in place."""
    return cosines.mul_(_TICKS).round_().div_(_TICKS)


def paired_cosines(a: Float[Tensor, "*sets D"], b: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets"]:
    """Cosines between unit rows at the same position of `a` and `b`, rounded like `unit_cosines`."""
    return _rounded((a * b).sum(-1))


def mean_pair_cosines(x: Float[Tensor, "T N D"], lengths: Sequence[int]) -> Float[Tensor, "segments N"]:
    """Mean cosine between the tokens at one position, over all pairs of a segment's frames; -1 in a single frame.

    Args:
        lengths: frames per segment, T in all.
    """
    _, N, D = x.shape
    cosines = torch.full((len(lengths), N), -1.0, device=x.device)
    for segment, frames, length in zip(cosines, x.split(list(lengths)), lengths, strict=True):
        if length == 1:
            continue
        total, squares = torch.zeros(N, D, device=x.device), torch.zeros(N, device=x.device)
        for chunk in chunks(length, N * D * 4, x.device):
            unit = unit_rows(frames[chunk])
            total += unit.sum(0)
            squares += unit.square().sum((0, 2))
        # The square of the sum holds every pair twice, and every row with itself.
        segment.copy_((total.square().sum(1) - squares) / (length * (length - 1)))
    return cosines
