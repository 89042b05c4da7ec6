"""How processes end: by Ctrl-C with one line and exit code 130, and with the one that started them.

A launcher that is killed cannot end its workers, which would go on for hours, hold their GPUs and write to the same
journal as the run that is started next. Shell scripts do the same with `setpriv --pdeathsig`.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False  # what is imported up here takes a moment in which Ctrl-C is a traceback still
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

_SET_BY_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def run(name: str, load: Callable[[], Callable[[], int]]) -> int:
    """Run a program as the whole of this process, and return its exit code.

    While `load` imports, Ctrl-C ends the process at once: libraries in the middle of an import have nothing to put in
    order, and may make any other error of an exception. While the program runs, it is a `KeyboardInterrupt`, so that
    files are whole or absent; a second Ctrl-C ends the process at once again. A process that was started without
    Ctrl-C, in a script's background, stays without.

        sys.exit(run("tango", load))

    Args:
        name: what the line begins with.
        load: does the imports and returns the program. Only the main thread may call this.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return load()()
    pressed: list[bool] = []

    def leave(*_signal: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, f"{name}: interrupted\n".encode())
        os._exit(130)  # without waiting for threads, and for what libraries do at the end

    def interrupt(*_signal: object) -> NoReturn:
        pressed.append(True)
        signal.signal(signal.SIGINT, leave)
        raise KeyboardInterrupt

    def ignored(error: Any) -> None:
        """Python goes on after an exception in a destructor, and only prints it."""
        if pressed:
            leave()
        sys.__unraisablehook__(error)

    signal.signal(signal.SIGINT, leave)
    program = load()
    sys.unraisablehook = ignored
    signal.signal(signal.SIGINT, interrupt)
    try:
        return program()
    except BaseException:
        if not pressed:
            raise
        leave()
    finally:
        signal.signal(signal.SIGINT, leave)
        if pressed:  # a library made something else of it
            leave()


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent ends.

    The signal is SIGKILL, which nothing can hold up; journals are made for it. Other systems than Linux have no such
    call, and nothing happens there.
    """
    if sys.platform == "linux":
        import ctypes

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
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b"python"  # nothing is known of it
