"""What FFmpeg complains of: much damage it only logs, and hands over what is left as if the file were whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any


class _Hook:
    """PyAV's hook into FFmpeg's log, which is one for the whole process: set while anybody listens, then put back."""

    def __init__(self) -> None:
        self._lock, self._listeners = Lock(), 0
        self._before: tuple[int | None, bool] = (None, True)
        self._others: Any = None

    def set(self) -> None:
        from av import logging

        with self._lock:
            self._listeners += 1
            if self._listeners > 1:
                return
            level = logging.get_level()
            self._before = level, logging.get_skip_repeated()
            logging.set_skip_repeated(False)  # or the end of one file would swallow the start of the next
            logging.set_level(max(logging.INFO, level or 0))
            if level is None:  # nobody wanted to hear of what other threads do; keep it so
                self._others = logging.Capture(local=False)
                self._others.__enter__()

    def put_back(self) -> None:
        from av import logging

        with self._lock:
            self._listeners -= 1
            if self._listeners:
                return
            if self._others is not None:
                self._others.__exit__(None, None, None)
                self._others = None
            level, skip_repeated = self._before
            logging.set_level(level)
            logging.set_skip_repeated(skip_repeated)


_HOOK = _Hook()


@contextmanager
def complaints() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg says in this thread: (level, who, message), in a list that grows while the block runs.

    Who speaks is the name of a container's format or of a codec, or nothing.

    Decoders must not have threads of their own meanwhile: what those say is lost, and a decoder that is closed while
    one of them waits for Python's lock to say something never ends.
    """
    from av import logging

    _HOOK.set()
    try:
        with logging.Capture() as said:
            yield said
    finally:
        _HOOK.put_back()
