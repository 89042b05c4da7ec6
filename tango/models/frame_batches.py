"""Runs long videos through a vision tower in batches of frames, so that its activations take bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tango.ops.device import to_device

# Memory for a batch's activations. On a GPU that is about 40 frames of SigLIP-SO400M in 16 bit, enough to fill it.
CPU_BYTES = 256 << 20
GPU_BYTES = 1 << 30
# Channels of a patch at a tower's peak, in tower widths: a block's input, queries, keys and values, and an MLP four
# times as wide before and after its activation. The projector that follows takes about as many.
_WIDTHS = 16


def frame_batches(patches: Sequence[int], width: int, dtype: torch.dtype, device: torch.device) -> Iterator[slice]:
    """Cut frames into batches of about equal size whose activations fit the device's budget; at least one frame each.

    The cut depends on shapes alone, so nothing waits for the device.

    Args:
        patches: number of patches of each frame.
        width: P, the tower's.

    Example:
        >>> list(frame_batches([256] * 100, width=1152, dtype=torch.float32, device=torch.device("cpu")))
        [slice(0, 13, None), ...]
    """
    budget = CPU_BYTES if device.type == "cpu" else GPU_BYTES
    largest, total = max(patches, default=1), sum(patches)
    most = max(1, budget // (_WIDTHS * width * dtype.itemsize) // largest) * largest
    fair = min(most, -(-total // max(1, -(-total // most))) + largest - 1)
    start = taken = 0
    for frame, count in enumerate(patches):
        if frame > start and taken + count > fair:
            yield slice(start, frame)
            start, taken = frame, 0
        taken += count
    if patches:
        yield slice(start, len(patches))


class FrameRows:
    """Collects rows of every batch of frames in tensors of the final size.

    Concatenating the batches at the end would take twice the memory.

    Args:
        rows: for every frame that is wanted in the end, the number of the collected one whose rows it has; None: they
            are those that are collected.
    """

    def __init__(self, num_frames: int, rows: Sequence[int] | None = None):
        self._num_frames, self._done = num_frames, 0
        self._rows = None if rows is None or list(rows) == list(range(num_frames)) else rows
        self._tensors: dict[str, Tensor] = {}

    def add(self, **parts: Tensor) -> None:
        """Add the next frames' rows (frames, ...), under the same names for every batch. Gradients flow."""
        [count] = {len(part) for part in parts.values()}
        for name, part in parts.items():
            if count == self._num_frames:
                self._tensors[name] = part
                continue
            if name not in self._tensors:
                self._tensors[name] = part.new_empty(self._num_frames, *part.shape[1:])
            self._tensors[name][self._done : self._done + count] = part
        self._done += count

    def get(self, name: str) -> Tensor | None:
        """Rows of all frames; None if none were added under this name."""
        assert self._done == self._num_frames
        found = self._tensors.get(name)
        if found is None or self._rows is None:
            return found
        return found.index_select(0, to_device(self._rows, found.device))

    def split(self, name: str, lengths: Sequence[int]) -> Sequence[Tensor | None]:
        """Rows of every video, given each video's number of frames; Nones if none were added under this name."""
        rows = self.get(name)
        return [None] * len(lengths) if rows is None else rows.split(list(lengths))

    def rest(self, names: Sequence[str]) -> list[Tensor]:
        """Rows that were added under other names than these, in the order of the first batch."""
        found = (self.get(name) for name in self._tensors if name not in names)
        return [x for x in found if x is not None]
