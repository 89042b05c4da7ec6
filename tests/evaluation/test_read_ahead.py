"""`read_ahead`: order, bounds, errors and the end of its threads."""

from __future__ import annotations

import threading

import pytest

from tango.evaluation.readahead import read_ahead

WORKERS = [0, 1, 3]


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("tango-read-ahead")}


@pytest.mark.parametrize("workers", WORKERS)
def test_order_is_kept_and_errors_stay_with_their_item(workers):
    results = list(read_ahead(range(20), lambda i: 60 // (i - 7), workers=workers, max_ahead=4))
    assert [item for item, _ in results] == list(range(20))
    assert isinstance(results[7][1], ZeroDivisionError)
    assert [result for item, result in results if item != 7] == [60 // (i - 7) for i in range(20) if i != 7]
    assert own_threads() == set()


def test_a_slow_item_does_not_let_others_overtake_it():
    gate = threading.Event()

    def work(i: int) -> int:
        if i == 0:
            assert gate.wait(30)
        if i == 3:  # begun while the first is still at work
            gate.set()
        return i

    assert [result for _, result in read_ahead(range(6), work, workers=2, max_ahead=4)] == list(range(6))


@pytest.mark.parametrize(("workers", "drawn"), [(0, 1), (2, 5)])
def test_no_more_items_are_drawn_than_may_wait(workers, drawn):
    taken = []
    items = (taken.append(i) or i for i in range(100))
    results = read_ahead(items, lambda i: i, workers=workers, max_ahead=5)
    assert taken == []
    for count in range(3):
        assert next(results) == (count, count)
        assert len(taken) == count + drawn
    results.close()
    assert own_threads() == set()


def test_items_are_drawn_by_the_consumers_thread():
    threads = []
    items = (threads.append(threading.get_ident()) or i for i in range(10))
    assert len(list(read_ahead(items, lambda i: i, workers=3, max_ahead=4))) == 10
    assert set(threads) == {threading.get_ident()}


def test_closing_early_drops_what_waits_and_ends_the_threads():
    begun = []
    results = read_ahead(range(100), begun.append, workers=1, max_ahead=50)
    next(results)
    results.close()
    assert own_threads() == set()
    assert len(begun) <= 50


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_of_the_items_themselves_comes_through(workers):
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(read_ahead(items(), lambda i: i, workers=workers, max_ahead=1))
    assert own_threads() == set()


@pytest.mark.parametrize("workers", WORKERS)
def test_an_interrupt_is_no_result(workers):
    def work(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(read_ahead(range(3), work, workers=workers, max_ahead=2))
