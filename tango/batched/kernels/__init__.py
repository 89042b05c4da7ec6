"""Triton kernels that move rows in one pass over memory where torch needs several. They need a GPU.

Nothing here imports Triton until a kernel is asked for, so that an installation without it loses nothing but speed.
"""

from __future__ import annotations

import shutil
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor


def kernels_run_on(x: Tensor) -> bool:
    """Whether the kernels work on `x`: it lies on an NVIDIA GPU of the Ampere generation or later; a working Triton."""
    return (
        x.is_cuda
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
