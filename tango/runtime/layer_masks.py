"""Attention masks of prompts that were pruned on their way through the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.errors import UnsupportedModelError
from tango.models.calls import cache_of


@dataclass(frozen=True)
class Kept:
    """Which columns of the full prompts, `num_columns` each, the short prompts consist of."""

    columns: Tensor  # (rows, S'), padded on the left
    real: Tensor | None  # (rows, S'), False at padding; None: there is no padding
    num_columns: int

    @classmethod
    def of(cls, columns: list[Tensor], repeats: int, num_columns: int) -> Kept:
        """Stack the columns of every prompt, `repeats` times each: one row for every beam or sample."""
        lengths = [len(c) for c in columns]
        width, device = max(lengths), columns[0].device
        stacked = torch.stack([F.pad(c, (width - len(c), 0)) for c in columns]).repeat_interleave(repeats, dim=0)
        if min(lengths) == width:
            return cls(stacked, None, num_columns)
        first = torch.tensor([width - n for n in lengths], device=device).repeat_interleave(repeats)
        return cls(stacked, torch.arange(width, device=device) >= first[:, None], num_columns)

    def extended(self, total: int) -> Tensor:
        """Append the columns from `num_columns` to `total`: candidate tokens, new tokens, unused cache."""
        rest = torch.arange(self.num_columns, total, device=self.columns.device)
        return torch.cat([self.columns, rest.expand(len(self.columns), -1)], dim=1)


def short_mask(
    kwargs: Mapping[str, object], kept: Kept, rows: int, length: int, prompt_call: bool, *, flash: bool
) -> Tensor | None:
    """Make the mask of the short sequences, in the form of the long sequences' mask: 4-D, 2-D or none.

    Args:
        kwargs: arguments of a decoder layer for the long sequences; this call holds `length` tokens of each.
        prompt_call: the call holds the whole prompts; otherwise it holds what follows them.
    Raises:
        UnsupportedModelError: the mask is not a tensor.
    """
    mask, cache = _given_mask(kwargs), cache_of(kwargs)
    size = 0 if cache is None else getattr(cache.layers[0], "max_cache_len", 0)
    if mask is None:
        if kept.real is None:
            return None
        seen = length if cache is None else int(cache.layers[0].get_seq_length())
        mask = _causal_mask(rows, length, seen, seen - length, kept.columns.device, flash=flash)
    mask = mask.expand(rows, *mask.shape[1:])
    columns, width = kept.extended(mask.shape[-1]), kept.columns.shape[1]
    real = None if kept.real is None else F.pad(kept.real, (0, columns.shape[1] - width), value=True)
    if mask.ndim == 2:
        mask = mask.gather(1, columns)  # (rows, key columns)
        return mask if real is None else mask * real
    heads, (shown, hidden) = mask.shape[1], _mask_values(mask)
    if prompt_call:
        kept_rows = columns[:, : width + length - kept.num_columns]
        # (rows, heads, query columns, key columns): first the queries, then the keys
        mask = mask.gather(2, kept_rows[:, None, :, None].expand(-1, heads, -1, mask.shape[-1]))
    mask = mask.gather(3, columns[:, None, None].expand(-1, heads, mask.shape[2], -1))
    if real is not None:
        mask = mask.masked_fill(~real[:, None, None], hidden)
        if prompt_call:  # padding sees itself: some kernels return NaN for a query that sees nothing
            own = torch.eye(*mask.shape[2:], dtype=torch.bool, device=mask.device)
            mask = mask.masked_fill(own & ~real[:, None, : mask.shape[2], None], shown)
    return F.pad(mask, (0, max(size - mask.shape[-1], 0)), value=hidden)


def noncausal_mask(
    kwargs: Mapping[str, object], attended: Tensor, rows: int, length: int, *, flash: bool
) -> dict[str, object]:
    """Make the arguments that let a prompt's tokens attend to each other in both directions.

    Args:
        attended: False at padding, (B, S).
    Raises:
        UnsupportedModelError: with flash attention, the call holds more than the prompts; or the mask is not a tensor.
    """
    B, S = attended.shape
    if flash:
        if length > S:
            raise UnsupportedModelError("noncausal_layer does not work with flash attention and candidate tokens")
        return {"is_causal": False}
    mask, cache = _given_mask(kwargs), cache_of(kwargs)
    if mask is None:
        size = length if cache is None else getattr(cache.layers[0], "max_cache_len", length)
        mask = _causal_mask(rows, length, size, 0, attended.device, flash=flash)
    mask = mask.expand(rows, *mask.shape[1:]).clone()
    seen = attended.repeat_interleave(rows // B, dim=0)[:, None, None]
    shown, hidden = _mask_values(mask)
    mask[..., :S, :S] = torch.full_like(mask[..., :S, :S], hidden).masked_fill(seen, shown)
    return {"attention_mask": mask}


def _given_mask(kwargs: Mapping[str, object]) -> Tensor | None:
    mask = kwargs.get("attention_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"pruning inside the LLM cannot read an attention mask of type {type(mask).__name__}, it needs a tensor; "
            "load the model with another attn_implementation, such as 'sdpa'"
        )
    return mask


def _causal_mask(rows: int, length: int, columns: int, past: int, device: torch.device, *, flash: bool) -> Tensor:
    if flash:
        return torch.ones(rows, columns, dtype=torch.bool, device=device)
    return torch.ones(1, 1, length, columns, dtype=torch.bool, device=device).tril(past)


def _mask_values(mask: Tensor) -> tuple[float | bool, float | bool]:
    """The values of a 4-D mask for visible and for hidden columns."""
    return (True, False) if mask.dtype == torch.bool else (0.0, torch.finfo(mask.dtype).min)
