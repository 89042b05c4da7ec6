"""Multimodal rotary positions of the Qwen-VL family, and the time that one temporal grid step takes.

This is own code because transformers is wrong here: 5.17 truncates times to whole seconds, and 5.x up to at least 5.23
counts the text after a video from the video's width instead of from its last position.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tango.annotations import Int
from tango.models.calls import Inputs

Grid = tuple[int, int, int]  # temporal steps, rows, columns


def vision_positions(grid: Grid, *, step: float = 1.0, tokens_per_second: float = 1.0) -> Int[Tensor, "3 tokens"]:
    """Temporal, row and column positions of one image's or video's tokens, from 0.

    The temporal position of grid step i is floor(i * step * tokens_per_second), computed in float32 and in this order,
    as in the original code.

    Example:
        >>> vision_positions((2, 1, 3), step=0.5, tokens_per_second=2)
        tensor([[0, 0, 0, 1, 1, 1],
                [0, 0, 0, 0, 0, 0],
                [0, 1, 2, 0, 1, 2]])
    """
    t, h, w = grid
    temporal = ((torch.arange(t, dtype=torch.float32) * step) * tokens_per_second).long()
    return torch.stack(torch.meshgrid(temporal, torch.arange(h), torch.arange(w), indexing="ij")).flatten(1)


def mrope_positions(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Int[Tensor, "B L"] | None,
    vision: Mapping[int, Sequence[Int[Tensor, "3 tokens"]]],
) -> Int[Tensor, "3 B L"]:
    """Positions of a batch of prompts: text counts up in all three rows; after an image or video it goes on from the
    largest position there + 1.

    Args:
        vision: placeholder id -> `vision_positions` of each of its images or videos, in the order of the prompt.
    Raises:
        ValueError: the prompts' placeholders do not match the images and videos.
    """
    ids = input_ids.cpu()
    attended = torch.ones_like(ids) if attention_mask is None else attention_mask.cpu()
    queues = {token: iter(items) for token, items in vision.items()}
    positions = torch.zeros(3, *ids.shape, dtype=torch.long)
    for row, seen in enumerate(attended.bool()):
        positions[:, row, seen] = _row_positions(ids[row, seen], queues)
    if any(next(queue, None) is not None for queue in queues.values()):
        raise ValueError("there are more images or videos than the prompt has placeholders for")
    return positions.to(input_ids.device)


def _row_positions(ids: Tensor, queues: Mapping[int, Iterator[Tensor]]) -> Tensor:
    positions = torch.empty(3, len(ids), dtype=torch.long)
    placeholders = torch.isin(ids, torch.tensor(list(queues))).nonzero().flatten().tolist()
    placed = following = used = 0  # tokens that have positions, the next position, placeholders that have positions
    while used < len(placeholders):
        first = placeholders[used]
        item = next(queues[int(ids[first])], None)
        n = 0 if item is None else item.shape[1]
        if item is None or not ids[first : first + n].eq(ids[first]).all() or first + n > len(ids):
            wanted = "none is left" if item is None else f"the next image or video makes {n} tokens"
            raise ValueError(f"the prompt has placeholders from token {first} of a row, but {wanted}")
        if first + n < len(ids) and ids[first + n] == ids[first]:
            run = int(ids[first:].ne(ids[first]).long().cumsum(0).eq(0).sum())
            raise ValueError(
                f"the prompt has a run of {run} placeholders from token {first} of a row, but the next image or video "
                f"(or step of a video, where every step has a run of its own) makes {n}; was the prompt built by this "
                "model's processor?"
            )
        positions[:, placed:first] = torch.arange(first - placed) + following
        following += first - placed
        positions[:, first : first + n] = item + following
        following += int(item.max()) + 1
        placed, used = first + n, used + n
    positions[:, placed:] = torch.arange(len(ids) - placed) + following
    return positions


def grid_times(inputs: Inputs, steps: Sequence[int], temporal_patch: int, *, warn: bool) -> list[Tensor]:
    """Seconds of every temporal grid step, one (T,) float64 tensor per video.

    They come from `video_timestamps_s`, which holds one time per sampled frame or per grid step; times of frames are
    interpolated to T points, the first on the first frame and the last on the last. Without that input they come from
    `seconds_per_step`.

    Source: the released evaluation code of arXiv:2604.09547.
    """
    seconds = seconds_per_step(inputs, steps, temporal_patch, warn=warn)
    if inputs.get("video_timestamps_s") is None:
        return [torch.arange(T, dtype=torch.float64) * s for T, s in zip(steps, seconds, strict=True)]
    given = _given_times(inputs["video_timestamps_s"], steps, temporal_patch)
    return [
        torch.from_numpy(np.interp(np.linspace(0, len(times) - 1, T), np.arange(len(times)), times))
        for times, T in zip(given, steps, strict=True)
    ]


def seconds_per_step(inputs: Inputs, steps: Sequence[int], temporal_patch: int, *, warn: bool) -> list[float]:
    """Seconds from one temporal grid step to the next, per video: `second_per_grid_ts`, else from the timestamps.

    Without either input a step counts as one second. transformers' processors assume 24 frames a second when they are
    not told; a value that comes from this assumption is replaced where timestamps are given. `warn` warns in both
    cases.

    Raises:
        ValueError: the numbers of videos, frames and values do not match.
    """
    known: list[float] | None = None
    if inputs.get("video_timestamps_s") is not None:
        times = _given_times(inputs["video_timestamps_s"], steps, temporal_patch)
        known = [_spacing(t, T, temporal_patch) for t, T in zip(times, steps, strict=True)]
    if inputs.get("second_per_grid_ts") is None:
        if known is None and warn and max(steps) > 1:
            warnings.warn(
                "neither second_per_grid_ts nor video_timestamps_s in the inputs: steps of two frames count as one "
                "second apart. Pass seconds per frame, one list per video (tango.prepare does)",
                stacklevel=2,
            )
        return known or [1.0] * len(steps)
    given = [float(s) for s in inputs["second_per_grid_ts"]]
    if len(given) != len(steps):
        raise ValueError(f"second_per_grid_ts must hold one value per video ({len(steps)}), got {len(given)}")
    truth = known or [math.inf] * len(steps)
    assumed = [
        T > 1 and math.isclose(s, temporal_patch / 24, rel_tol=1e-3) and not math.isclose(s, true, rel_tol=0.05)
        for s, true, T in zip(given, truth, steps, strict=True)
    ]
    if any(assumed) and warn:
        way_out = "pass video_timestamps_s too" if known is None else "using video_timestamps_s"
        warnings.warn(f"second_per_grid_ts looks like an assumed 24 frames a second; {way_out}", stacklevel=2)
    return [true if a and known else s for s, true, a in zip(given, truth, assumed, strict=True)]


def _given_times(
    given: Sequence[Sequence[float] | Tensor] | Tensor, steps: Sequence[int], temporal_patch: int
) -> list[np.ndarray]:
    times = [torch.as_tensor(t, dtype=torch.float64).cpu().numpy() for t in given]
    fits = [
        t.ndim == 1 and T in (len(t), math.ceil(len(t) / temporal_patch)) for t, T in zip(times, steps, strict=False)
    ]
    if len(times) != len(steps) or not all(fits):
        raise ValueError(
            "video_timestamps_s must hold one list of seconds per video, with a time per frame or per grid step "
            f"({list(steps)} steps of {temporal_patch} frames); got shapes {[t.shape for t in times]}"
        )
    return times


def _spacing(times: np.ndarray, T: int, temporal_patch: int) -> float:
    """Mean seconds per grid step, rounded so that noise in the last digits cannot change `floor` in a position."""
    if len(times) < 2:
        return 1.0  # a single step has position 0 in any case
    return round(float(times[-1] - times[0]) / (len(times) - 1) * (1 if len(times) == T else temporal_patch), 6)
