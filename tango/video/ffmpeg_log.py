"""FFmpeg's complaints: much damage it only logs, and then returns the rest as if the file were whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock


class _Hook:
    """PyAV's hook into FFmpeg's log, of which a process has one: set while any thread listens, then put back."""

    def __init__(self) -> None:
        self._lock, self._listeners, self._undo = Lock(), 0, ExitStack()

    def set(self) -> None:
        from av import logging

        with self._lock:
            self._listeners += 1
            if self._listeners > 1:
                return
            level = logging.get_level()
            self._undo.callback(logging.set_skip_repeated, logging.get_skip_repeated())
            self._undo.callback(logging.set_level, level)
            logging.set_skip_repeated(False)  # or a file's first message would be left out if it equals the last one
            logging.set_level(max(logging.INFO, level or 0))
            if level is None:  # logging was off: keep what other threads cause off the terminal
                others = logging.Capture(local=False)
                others.__enter__()
                self._undo.callback(others.__exit__, None, None, None)

    def put_back(self) -> None:
        with self._lock:
            self._listeners -= 1
            if not self._listeners:
                self._undo.close()


_HOOK = _Hook()


@contextmanager
def complaints() -> Iterator[list[tuple[int, str, str]]]:
    """Collect FFmpeg's log messages of this thread: (level, who, message), in a list that grows while the block runs.

    `who` is the name of a container format or codec, or "".

    Decoders must not have threads of their own in the block: the messages of those are lost, and closing a decoder
    while one of its threads waits for Python's lock in order to log never ends.
    """
    from av import logging

    _HOOK.set()
    try:
        with logging.Capture() as said:
            yield said
    finally:
        _HOOK.put_back()
