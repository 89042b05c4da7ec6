"""How processes end: on Ctrl-C, with one line and exit code 130; and together with the process that started them.

A killed launcher cannot end its workers. They would go on for hours, hold their GPUs and write to the journal of the
next run. Shell scripts end theirs with `setpriv --pdeathsig`. And what memory a process holds.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False  # as few imports as possible: while they run, Ctrl-C still prints a traceback
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

_SET_BY_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def run(name: str, load: Callable[[], Callable[[], int]]) -> int:
    """Run a program as the whole of this process, and return its exit code.

    While `load` imports, Ctrl-C ends the process at once: a half-imported library has nothing to clean up, and may turn
    an exception into any other error. While the program runs, Ctrl-C is a `KeyboardInterrupt`, so that files are whole
    or absent; a second one ends the process at once. A process that ignored Ctrl-C from the start, such as one in a
    script's background, goes on ignoring it. Only the main thread may call this.

        sys.exit(run("tango", load))

    Args:
        name: the line on stderr begins with it.
        load: does the imports and returns the program.
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
        os._exit(130)  # waits neither for threads nor for what libraries do at exit

    def interrupt(*_signal: object) -> NoReturn:
        pressed.append(True)
        signal.signal(signal.SIGINT, leave)
        sys.excepthook = leave  # imports that were interrupted halfway fail later, with errors that say nothing of it
        raise KeyboardInterrupt

    def ignored(error: sys.UnraisableHookArgs) -> None:
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
        if pressed:  # a library has turned the interrupt into something else
            leave()


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent ends.

    The signal is SIGKILL, which nothing can delay; journals are made for it. Only Linux has this call: elsewhere
    nothing happens.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """Have a process end with torchrun or `accelerate launch`, if one of them started it, as `environ` says.

    A process that was started by hand is left alone: it may outlive its shell.

    Example:
        >>> import os
        >>> end_with_launcher(os.environ)
    """
    if not environ.keys() & _SET_BY_LAUNCHERS:
        return
    end_with_parent()
    if os.getppid() == 1 and b"python" not in _command_line(
        1
    ):  # the launcher, a Python program, ended during the imports
        os.kill(os.getpid(), signal.SIGKILL)


def _command_line(process: int) -> bytes:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b"python"  # unknown: assume that the launcher runs


def resident_bytes(*, peak: bool = False) -> int:
    """The memory this process holds in RAM now, or the most it ever held, in bytes; 0 where the system does not tell.

    `getrusage` knows the peak as well, but Linux starts it with the peak of the process that started this one.
    """
    field = "VmHWM:" if peak else "VmRSS:"
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    if not peak or sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
