"""Finds frames with the same pixels."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
from torch import Tensor

from tango.annotations import UInt8

# Input of a model: for each video, what `first_equal` says of its frames (Qwen-VL: of its temporal steps).
FIRST_EQUAL = "video_first_equal"
_ROWS = 16  # one row in so many is looked at first: in most videos, frames differ there already


def first_equal(frames: UInt8[Tensor, "T h w 3"]) -> list[int]:
    """For every frame, the number of the first one with the same pixels; its own number if there is none before it.

    Time is linear in the number of frames. Frames of equal checksums are compared byte by byte.

    Example:
        >>> still, other = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.ones(8, 8, 3, dtype=torch.uint8)
        >>> first_equal(torch.stack([still, other, still, still]))
        [0, 1, 0, 0]
    """
    arrays = [np.ascontiguousarray(frame) for frame in frames.cpu().numpy()]
    rough = [zlib.crc32(np.ascontiguousarray(array[::_ROWS])) for array in arrays]
    shared = Counter(rough)
    seen: dict[tuple[int, int], list[int]] = {}  # rough and full checksum -> distinct frames
    first = []
    for t, array in enumerate(arrays):
        known = seen.setdefault((rough[t], zlib.crc32(array) if shared[rough[t]] > 1 else 0), [])
        same = next((s for s in known if np.array_equal(arrays[s], array)), t)
        if same == t:
            known.append(t)
        first.append(same)
    return first


def first_equal_steps(first: list[int], frames_per_step: int) -> list[int]:
    """As `first_equal`, for temporal steps of several frames; the last frame is repeated until it fills a step.

    Example:
        >>> first_equal_steps([0, 1, 0, 1, 4, 4, 4], frames_per_step=2)
        [0, 0, 2, 2]
    """
    padded = first + first[-1:] * (-len(first) % frames_per_step)
    steps = [tuple(padded[i : i + frames_per_step]) for i in range(0, len(padded), frames_per_step)]
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(step, number) for number, step in enumerate(steps)]
