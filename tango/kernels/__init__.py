"""Triton kernels that do for all sets of a video at once what `tango.ops` does set by set. They need a GPU.

Nothing here imports Triton until a kernel is asked for, so that an installation without it loses nothing but speed.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

_ALLOWED = ContextVar("kernels_allowed", default=True)


@contextmanager
def kernels_allowed(allowed: bool) -> Iterator[None]:
    """Whether kernels may be used within this block, if they can be."""
    token = _ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def kernels_run_on(x: Tensor) -> bool:
    """Whether the kernels work on `x`: allowed, an NVIDIA GPU of the Ampere generation or later, a working Triton."""
    return (
        _ALLOWED.get()
        and x.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and _triton_is_complete()
    )


@cache
def _triton_is_complete() -> bool:
    """Triton builds its launcher with a C compiler and Python's headers when it is first used; without, it fails."""
    return (
        find_spec("triton") is not None
        and (shutil.which("gcc") or shutil.which("clang")) is not None
        and Path(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h").exists()
    )
