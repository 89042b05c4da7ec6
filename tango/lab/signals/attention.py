"""The shape of attention over a frame: its peaks, and how much of it the highest tokens hold (Figures 1-3)."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.annotations import Bool, Float, Int

PEAK = 2.0  # a peak is higher than this many times its frame's mean


def find_peaks(saliency: Float[Tensor, "T N"], grid: tuple[int, int]) -> Bool[Tensor, "T N"]:
    """The modes of every frame's attention: tokens above twice the frame's mean that none of their eight neighbours
    exceeds. Of equal neighbours, the first counts.

    Example:
        >>> find_peaks(torch.tensor([[9.0, 1, 1, 1, 1, 9]]), (2, 3)).nonzero()[:, 1].tolist()
        [0, 5]
    """
    H, W = grid
    maps = saliency.float().unflatten(1, grid)
    padded = F.pad(maps, (1, 1, 1, 1), value=-math.inf)
    peaks = maps > PEAK * maps.mean((1, 2), keepdim=True)
    for dy, dx in product((-1, 0, 1), repeat=2):
        neighbour = padded[:, 1 + dy : 1 + dy + H, 1 + dx : 1 + dx + W]
        if (dy, dx) < (0, 0):
            peaks = peaks & (maps > neighbour)
        elif (dy, dx) > (0, 0):
            peaks = peaks & (maps >= neighbour)
    return peaks.flatten(1)


def share_of_top(saliency: Float[Tensor, "T N"], share: float) -> Float[Tensor, "T"]:
    """How much of each frame's attention its ceil(share N) highest tokens hold; 0 where there is no attention.

    Example:
        >>> share_of_top(torch.tensor([[6.0, 1, 1, 1, 1]]), 0.2)
        tensor([0.6000])
    """
    ordered, total = _ordered(saliency)
    count = math.ceil(share * saliency.shape[1] - 1e-9)
    return ordered[:, :count].sum(1) / total


def tokens_for(saliency: Float[Tensor, "T N"], mass: float) -> Float[Tensor, "T"]:
    """The least share of each frame's tokens that holds this part of its attention.

    Example:
        >>> tokens_for(torch.tensor([[6.0, 1, 1, 1, 1]]), 0.7)
        tensor([0.4000])
    """
    ordered, total = _ordered(saliency)
    held = ordered.double().cumsum(1) / total.double()[:, None]
    return (held < mass - 1e-6).sum(1).add(1).clamp_max(saliency.shape[1]).float() / saliency.shape[1]


def peaks_touched(
    peaks: Bool[Tensor, "T N"], chosen: Int[Tensor, "T k"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "T"], Bool[Tensor, "T"]]:
    """The share of each frame's peaks with a chosen token at their place or beside it, and which frames have peaks.

    Example:
        >>> peaks = torch.tensor([[True, False, False, False, True]])
        >>> peaks_touched(peaks, torch.tensor([[1]]), (1, 5))
        (tensor([0.5000]), tensor([True]))
    """
    marks = torch.zeros(peaks.shape, device=peaks.device).scatter_(1, chosen, 1.0).unflatten(1, grid)
    near = F.max_pool2d(marks[:, None], 3, stride=1, padding=1).flatten(1) > 0
    counts = peaks.sum(1)
    return (near & peaks).sum(1) / counts.clamp_min(1), counts > 0


def _ordered(saliency: Float[Tensor, "T N"]) -> tuple[Float[Tensor, "T N"], Float[Tensor, "T"]]:
    """Attention from the highest token down, and its sum."""
    ordered = saliency.float().sort(dim=1, descending=True).values
    return ordered, ordered.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
