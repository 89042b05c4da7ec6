"""Attention masks of prompts that got shorter on their way through the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.errors import UnsupportedModelError
from tango.models.calls import cache_of


@dataclass(frozen=True)
class Kept:
    """The columns of full prompts, `num_columns` each, that short ones consist of."""

    columns: Tensor  # (rows, S'), filled up on the left
    real: Tensor | None  # (rows, S'), False where filled up; None: nowhere
    num_columns: int

    @classmethod
    def of(cls, columns: list[Tensor], repeats: int, num_columns: int) -> Kept:
        """From the columns of every prompt, for `repeats` sequences of each."""
        lengths = [len(c) for c in columns]
        width, device = max(lengths), columns[0].device
        stacked = torch.stack([F.pad(c, (width - len(c), 0)) for c in columns]).repeat_interleave(repeats, dim=0)
        if min(lengths) == width:
            return cls(stacked, None, num_columns)
        first = torch.tensor([width - n for n in lengths], device=device).repeat_interleave(repeats)
        return cls(stacked, torch.arange(width, device=device) >= first[:, None], num_columns)

    def extended(self, total: int) -> Tensor:
        """These columns, and after them those from `num_columns` to `total`: candidates, new tokens, unused cache."""
        rest = torch.arange(self.num_columns, total, device=self.columns.device)
        return torch.cat([self.columns, rest.expand(len(self.columns), -1)], dim=1)


def short_mask(
    kwargs: dict[str, Any], kept: Kept, rows: int, length: int, prompt_call: bool, *, flash: bool
) -> Tensor | None:
    """The mask of the short sequences, in the form that the long ones have it: 4-D, 2-D or none.

    Args:
        kwargs: arguments of a decoder layer for the long sequences, of which this call holds `length` tokens each.
        prompt_call: the call holds the whole prompts; otherwise what follows them.
    Raises:
        UnsupportedModelError: the mask is no tensor.
    """
    mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
    size = 0 if cache is None else getattr(cache.layers[0], "max_cache_len", 0)
    if mask is None:
        if kept.real is None:
            return None
        seen = length if cache is None else int(cache.layers[0].get_seq_length())
        mask = _causal_mask(rows, length, seen, seen - length, kept.columns.device, flash=flash)
    if not isinstance(mask, Tensor):
        raise UnsupportedModelError(f"pruning at a layer cannot read masks of type {type(mask).__name__}")
    mask = mask.expand(rows, *mask.shape[1:])
    columns, width = kept.extended(mask.shape[-1]), kept.columns.shape[1]
    real = None if kept.real is None else F.pad(kept.real, (0, columns.shape[1] - width), value=True)
    if mask.ndim == 2:
        mask = mask.gather(1, columns)
        return mask if real is None else mask * real
    heads, (shown, hidden) = mask.shape[1], _mask_values(mask)
    if prompt_call:
        kept_rows = columns[:, : width + length - kept.num_columns]
        mask = mask.gather(2, kept_rows[:, None, :, None].expand(-1, heads, -1, mask.shape[-1]))
    mask = mask.gather(3, columns[:, None, None].expand(-1, heads, mask.shape[2], -1))
    if real is not None:
        mask = mask.masked_fill(~real[:, None, None], hidden)
        if prompt_call:  # rows that fill up see themselves: seeing nothing, some kernels answer NaN
            own = torch.eye(*mask.shape[2:], dtype=torch.bool, device=mask.device)
            mask = mask.masked_fill(own & ~real[:, None, : mask.shape[2], None], shown)
    return F.pad(mask, (0, max(size - mask.shape[-1], 0)), value=hidden)


def noncausal_mask(kwargs: dict[str, Any], attended: Tensor, rows: int, length: int, *, flash: bool) -> dict[str, Any]:
    """Arguments for attention without a causal mask among the prompts' tokens; `attended` (B, S) is False for padding.

    Raises:
        UnsupportedModelError: flash attention, and more than the prompts in the call.
    """
    B, S = attended.shape
    if flash:
        if length > S:
            raise UnsupportedModelError("noncausal_layer does not work with flash attention and candidate tokens")
        return {"is_causal": False}
    mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
    if mask is None:
        size = length if cache is None else getattr(cache.layers[0], "max_cache_len", length)
        mask = _causal_mask(rows, length, size, 0, attended.device, flash=flash)
    mask = mask.expand(rows, *mask.shape[1:]).clone()
    seen = attended.repeat_interleave(rows // B, dim=0)[:, None, None]
    shown, hidden = _mask_values(mask)
    mask[..., :S, :S] = torch.full_like(mask[..., :S, :S], hidden).masked_fill(seen, shown)
    return {"attention_mask": mask}


def _causal_mask(rows: int, length: int, columns: int, past: int, device: torch.device, *, flash: bool) -> Tensor:
    if flash:
        return torch.ones(rows, columns, dtype=torch.bool, device=device)
    return torch.ones(1, 1, length, columns, dtype=torch.bool, device=device).tril(past)


def _mask_values(mask: Tensor) -> tuple[float | bool, float | bool]:
    """What a 4-D mask holds for visible and for hidden columns."""
    return (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
