"""Programs that Ctrl-C ends with one line and exit code 130, whenever it comes."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

TYPE_CHECKING = False  # what is imported up here takes a moment in which Ctrl-C is a traceback still
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


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
