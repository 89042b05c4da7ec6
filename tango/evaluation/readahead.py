"""`read_ahead`: work done on threads ahead of its consumer, in order and with bounded memory."""

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
    """Yield every item with the result of `work`, or with the exception that it raised, in order.

    At most `max_ahead` items are being worked on or wait for the consumer. The consumer's own thread draws from `items`
    when it asks for the next result. Closing the generator drops what waits and returns once running work has ended.

    Args:
        workers: number of threads; 0: an item is worked on when its result is asked for.
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
