"""Triton kernels that move rows in one pass over memory, where torch needs several. They need a GPU.

Triton is imported only when a kernel is used, so that an installation without it loses nothing but speed.
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
    """Whether the kernels work on `x`: it is on an NVIDIA GPU of the Ampere generation or later, and Triton works."""
    return (
        x.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and _triton_is_complete()
    )


@cache
def _triton_is_complete() -> bool:
    """Whether Triton can build its launcher, for which it needs a C compiler and Python's headers."""
    return (
        find_spec("triton") is not None
        and (shutil.which("gcc") or shutil.which("clang")) is not None
        and Path(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h").exists()
    )
