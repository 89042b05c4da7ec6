"""Which frames are sampled, and errors in one line: shared by all readers."""

from __future__ import annotations

import numpy as np


def sample_indices(num_source_frames: int, num_frames: int) -> np.ndarray:
    """Spread `num_frames` positions evenly over 0..num_source_frames - 1, both ends included."""
    if num_source_frames < 1 or num_frames < 1:
        raise ValueError(f"both counts must be at least 1, got {num_source_frames} and {num_frames}")
    return np.linspace(0, num_source_frames - 1, num_frames, dtype=int)


def one_line(error: object) -> str:
    """Return the first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
