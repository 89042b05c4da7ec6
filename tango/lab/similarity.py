"""How static the benchmark's clips are, measured on the tokens of the small model's vision tower."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tango.lab.training.vision import see
from tango.ops.segmentation import adjacent_similarity, segment_by_static_tokens


def similarity(model: PreTrainedModel, frames: Tensor) -> NDArray[np.float32]:
    """Cosine similarity (T - 1, N) between the tokens at the same position in neighbouring frames."""
    with torch.inference_mode():
        return adjacent_similarity(see(model, frames)[0])[0].numpy()


def static_share(
    table: NDArray[np.float32], *, segment_threshold: float = 0.65, static_threshold: float = 0.8
) -> float:
    """Share of a video's tokens that is saved by averaging static tokens over segments; Tango's defaults at 10 %."""
    static, start, saved = table > static_threshold, 0, 0
    for length in segment_by_static_tokens(table, segment_threshold):
        if length > 1:
            saved += (length - 1) * int(static[start : start + length - 1].all(axis=0).sum())
        start += length
    return saved / ((len(table) + 1) * table.shape[1])
