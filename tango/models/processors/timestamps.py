"""Checks the times of sampled frames on their way from the video reader to the pruner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def video_timestamps(
    given: Sequence[Sequence[float] | Tensor] | Tensor | None, lengths: Sequence[int], *, wanted: bool
) -> list[Tensor]:
    """Return one (T,) float64 tensor of seconds per video, on the CPU.

    Without timestamps frames count as one second apart; `wanted` warns of it, for a method that needs real time.

    Raises:
        ValueError: there is not one list per video, or not one time per frame.
    """
    if given is None:
        if wanted:
            warnings.warn(
                "no video_timestamps_s in the inputs: frames count as one second apart. Pass seconds per frame, one "
                "list per video (tango.prepare does)",
                stacklevel=2,
            )
        return [torch.arange(length, dtype=torch.float64) for length in lengths]
    times = [torch.as_tensor(t, dtype=torch.float64).cpu() for t in given]
    if [t.shape for t in times] != [(length,) for length in lengths]:
        raise ValueError(
            f"video_timestamps_s must hold one list of seconds per video, of lengths {list(lengths)}; "
            f"got shapes {[tuple(t.shape) for t in times]}"
        )
    if not all(bool(t.isfinite().all()) and bool((t.diff() >= 0).all()) for t in times):
        raise ValueError("video_timestamps_s must be finite and not run backwards")
    return times
