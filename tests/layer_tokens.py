"""Prompts at a decoder layer, made by hand or at random, for tests of layer pruners by themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tango.containers import LayerTokens


def with_attention(visual: Tensor, attention: Tensor, **changes: Any) -> LayerTokens:
    """A prompt of these visual states (M, D) and one token of text, whose attention is proportional to `attention`."""
    M, D = visual.shape
    keys = torch.cat([attention.clamp_min(1e-30).log(), torch.zeros(1)])[:, None, None]
    fields: dict[str, Any] = {
        "layer": 1,
        "hidden": torch.cat([visual, torch.ones(1, D).to(visual)]),
        "visual": torch.arange(M),
        "text": torch.tensor([M]),
        "queries": torch.ones(1, 1, 1),
        "keys": keys,
        "scale": 1.0,
        "norm_weight": torch.ones(D).to(visual),
        "frames": torch.zeros(M, dtype=torch.long),
        "cells": torch.arange(M),
        "counts": (M,) * changes.get("layer", 1),
    }
    return LayerTokens(**{**fields, **changes})


def random_prompt(
    frames: int = 6, cells: int = 9, text: int = 7, before: int = 3, *, dim: int = 16, heads: int = 4, groups: int = 2,
    seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any,
) -> LayerTokens:  # fmt: skip
    """System text, a video of frames x cells tokens, a question; everything drawn from a normal distribution."""
    random = torch.Generator().manual_seed(seed)
    M = frames * cells
    S, head_dim = before + M + text, 8
    index = torch.arange(M)
    fields: dict[str, Any] = {
        "layer": 2,
        "hidden": torch.randn(S, dim, generator=random).to(dtype),
        "visual": before + index,
        "text": torch.arange(before + M, S),
        "queries": torch.randn(text, heads, head_dim, generator=random),
        "keys": torch.randn(S, groups, head_dim, generator=random),
        "scale": head_dim**-0.5,
        "norm_weight": torch.rand(dim, generator=random).to(dtype) + 0.5,
        "frames": index // cells,
        "cells": index % cells,
        "counts": (M,) * changes.get("layer", 2),
    }
    return LayerTokens(**{**fields, **changes})
