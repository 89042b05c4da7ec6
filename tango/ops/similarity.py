"""Cosine similarities that tie exactly where rows are equal."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.annotations import Float
from tango.ops.device import chunks

_TICKS = 2.0**18
_MAX_STRIPPED, _STRIP = 200, 64  # rows
# From how many rows on a split product is faster, by compute capability. On a H200 it takes 1.6 ms in place of 2.6 at
# 4,000 rows of 3,584 numbers, 0.88 in place of 0.65 at 2,000; for an A100 this is by its rates alone.
_LEAST_ROWS = {(9, 0): 3000, (8, 0): 2000}
_ONE_AT_A_TIME = threading.Lock()
_PIECE = 512  # of the width: with it, errors are those of a float32 product


def unit_rows(x: Float[Tensor, "*sets D"]) -> Float[Tensor, "*sets D"]:
    """Rows scaled to length 1, in float32. Rows of zeros stay zeros."""
    return F.normalize(x.float(), dim=-1)


def unit_cosines(
    a: Float[Tensor, "*sets rows D"], b: Float[Tensor, "*sets columns D"]
) -> Float[Tensor, "*sets rows columns"]:
    """Cosines between unit rows, rounded to multiples of 2**-18.

    That is several times the error of the float32 product: equal rows have equal cosines, whatever the matrix library,
    and a choice between them can go by their order.
    """
    return _rounded(products(a, b))


def unit_self_cosines(a: Float[Tensor, "*sets M D"]) -> Float[Tensor, "*sets M M"]:
    """`unit_cosines(a, a)`, for about half the work on a CPU."""
    return _rounded(gram(a))


def gram(x: Float[Tensor, "*sets M D"]) -> Float[Tensor, "*sets M M"]:
    """`products(x, x)`; on a CPU only about half of it is multiplied, and each set by itself."""
    if x.device.type != "cpu":
        return products(x, x)
    M = x.shape[-2]
    found = x.new_empty(*x.shape[:-1], M)
    for set_, out in zip(x.reshape(-1, *x.shape[-2:]), found.view(-1, M, M), strict=True):
        _fill_gram(set_, out)
    return found


def products(
    a: Float[Tensor, "*sets rows D"], b: Float[Tensor, "*sets columns D"]
) -> Float[Tensor, "*sets rows columns"]:
    """`a @ b.mT` in float32, also where the process allows less on a GPU."""
    if not a.is_cuda:
        return a @ b.mT
    if a.shape[-2] >= _LEAST_ROWS.get(torch.cuda.get_device_capability(a.device), math.inf):
        return split_products(a, b)
    with _matmul_precision("ieee"):
        return a @ b.mT


def split_products(
    a: Float[Tensor, "*sets rows D"], b: Float[Tensor, "*sets columns D"]
) -> Float[Tensor, "*sets rows columns"]:
    """`a @ b.mT` by three products on tensor cores: of both high parts, and of each with the other's low part.

    Tensor cores round sums towards zero. So they only add up pieces of the width, and these are added in float32.
    """
    found = a.new_zeros(*a.shape[:-1], b.shape[-2])
    with _matmul_precision("tf32"):
        for left, right in zip(a.split(_PIECE, dim=-1), b.split(_PIECE, dim=-1), strict=True):
            (left_high, left_low), (right_high, right_low) = _parts(left), _parts(right)
            for one, other in ((left_high, right_high), (left_high, right_low), (left_low, right_high)):
                found.baddbmm_(one, other.mT) if found.dim() == 3 else found.addmm_(one, other.mT)
    return found


def _parts(x: Float[Tensor, "*any"]) -> tuple[Tensor, Tensor]:
    """What TF32 holds of numbers, 11 significant bits, and the rest of them."""
    high = (x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32)
    return high, x - high


@contextmanager
def _matmul_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """How float32 is multiplied on a GPU within this chunk.

    PyTorch has this setting for the whole process. Tango's own threads take turns; products that another thread
    launches in the same fraction of a millisecond are multiplied this way, too.
    """
    matmul: Any = torch.backends.cuda.matmul
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


def mean_pair_cosines(x: Float[Tensor, "T N D"], lengths: Sequence[int]) -> Float[Tensor, "segments N"]:
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
        for chunk in chunks(length, N * D * 4, x.device):
            unit = unit_rows(frames[chunk])
            total += unit.sum(0)
            squares += unit.square().sum((0, 2))
        # The square of the sum holds every pair twice, and every row with itself.
        segment.copy_((total.square().sum(1) - squares) / (length * (length - 1)))
    return cosines
