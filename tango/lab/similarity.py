"""How static the benchmark's clips are, in the tokens that the small model's tower makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.lab.training.vision import see
from tango.ops.segmentation import adjacent_similarity, segment_by_static_tokens


def similarity(model: Any, frames: Tensor) -> NDArray[np.float32]:
    """Cosine between the tokens at the same place in neighbouring frames, (T - 1, N)."""
    with torch.inference_mode():
        return adjacent_similarity(see(model, frames)[0])[0].numpy()


def static_share(
    table: NDArray[np.float32], *, segment_threshold: float = 0.65, static_threshold: float = 0.8
) -> float:
    """Share of a video's tokens that averaging static ones over their segments saves; Tango's defaults at 10 %."""
    static, start, saved = table > static_threshold, 0, 0
    for length in segment_by_static_tokens(table, segment_threshold):
        if length > 1:
            saved += (length - 1) * int(static[start : start + length - 1].all(axis=0).sum())
        start += length
    return saved / ((len(table) + 1) * table.shape[1])
