"""Working with a device: chunks that bound its memory, and copies to it that nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# On a CPU a chunk that stays in the cache is several times faster than a larger one; a GPU wants few launches.
CPU_BYTES = 4 << 20
GPU_BYTES = 768 << 20


def chunks(count: int, bytes_each: int, device: torch.device, *, cpu_bytes: int = CPU_BYTES) -> Iterator[slice]:
    """Cut `range(count)` into slices whose items together take about as much memory as suits the device."""
    size = max(1, (cpu_bytes if device.type == "cpu" else GPU_BYTES) // max(1, bytes_each))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def to_device(values: Tensor | Sequence[int] | NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy a tensor, or integers, from the host without waiting for the device; a tensor already there stays."""
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.long, device="cpu")
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_device_together(*arrays: NDArray[np.int64], device: torch.device) -> list[Tensor]:
    """Copy several arrays of integers to the device at once."""
    joined = to_device(np.concatenate([array.ravel() for array in arrays]), device)
    parts = joined.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
