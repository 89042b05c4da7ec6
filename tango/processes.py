"""Processes that end with the one that started them, however that ends.

A launcher that is killed cannot end its workers, which would go on for hours, hold their GPUs and write to the same
journal as the run that is started next. Shell scripts do the same with `setpriv --pdeathsig`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_SET_BY_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent ends.

    The signal is SIGKILL, which nothing can hold up; journals are made for it. Other systems than Linux have no such
    call, and nothing happens there.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """The same for a process that torchrun or `accelerate launch` started, as `environ` says; others are left alone.

    A process that is started by hand is to outlive the shell it was started from.
    """
    if not environ.keys() & _SET_BY_LAUNCHERS:
        return
    end_with_parent()
    if os.getppid() == 1 and b"python" not in _command_line(1):  # launchers are: this one ended while modules loaded
        os.kill(os.getpid(), signal.SIGKILL)


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b"python"  # nothing is known of it
