"""Work done ahead of its consumer, on threads: order kept, memory bounded, errors kept with their item."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    items: Iterable[T], work: Callable[[T], R], *, workers: int, max_ahead: int
) -> Generator[tuple[T, R | Exception], None, None]:
    """Yield every item with what `work` makes of it, or with the exception that it raised, in order.

    At most `max_ahead` results wait or are in the making. `items` are drawn by the consumer's own thread, when it asks
    for the next result. Closing the generator drops what waits and returns once the running work has ended.

    Args:
        workers: threads; 0: work is done when its result is asked for.
    """
    if workers == 0:
        for item in items:
            yield item, _outcome(work, item)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tango-read-ahead")
    waiting: deque[tuple[T, Future[R | Exception]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(_outcome, work, item)))
            if len(waiting) >= max_ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(work: Callable[[T], R], item: T) -> R | Exception:
    try:
        return work(item)
    except Exception as error:
        return error
