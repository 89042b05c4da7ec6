"""What the checks share: rows of the table, and work done in processes that may hang or die."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tango.errors import TangoError
from tango.extensions import import_packages, imported

# Loaded once and forked with, not loaded anew in every process.
_PRELOADED = [
    "tango.evaluation.answerer",
    "tango.mini.benchmark",
    "av",
    "transformers.models.llava_onevision.modeling_llava_onevision",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip",
]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every check needs: a folder to work in, the seed, and how much is asked of it."""

    folder: Path
    seed: int = 0
    full: bool = False
    processes: int = 2
    limit_s: float = 20.0  # for one job in a process of its own


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was tried how often, what should come out, and what did."""

    check: str  # R1 to R9
    what: str
    tried: int
    target: str
    got: str
    passed: bool
    faults: tuple[str, ...] = ()  # the first few, in words

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "faults": list(self.faults)}


def counted(check: str, what: str, tried: int, faults: Sequence[str], *, noun: str = "faults") -> Row:
    """A row whose target is that nothing goes wrong; having tried nothing is no success."""
    got = f"{len(faults)} {noun}" if tried else "nothing could be tried"
    passed = tried > 0 and not faults
    return Row(
        check=check, what=what, tried=tried, target=f"0 {noun}", got=got, passed=passed, faults=tuple(faults[:20])
    )


class Outcome(NamedTuple):
    """What became of one job."""

    kind: Literal["ok", "refused", "crash", "hang", "signal"]  # refused: a TangoError; crash: any other exception
    value: Any = None  # of a job that returned; plain values
    message: str = ""
    warned: tuple[str, ...] = ()


def attempt(job: Callable[[], Any]) -> Outcome:
    """Run a job here and say what became of it; its warnings are part of that."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            kind, value, message = "ok", job(), ""
        except TangoError as error:
            kind, value, message = "refused", None, f"{type(error).__name__}: {error}"
        except Exception as error:
            kind, value, message = "crash", None, f"{type(error).__name__}: {' '.join(str(error).split())}"
    own = tuple(str(w.message) for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning)))
    return Outcome(kind, value, message, own)  # type: ignore[arg-type]


def silence() -> None:
    """Let this process print no more: native libraries write to its terminal, each in its own way.

    And let tqdm do without the semaphores that it would leave behind when the process is killed.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
    with open(os.devnull, "wb") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)


def start(target: Callable[..., None], *args: Any) -> Any:
    """Start a process that has the libraries loaded already; it is forked from a server that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_begin, args=(imported(), target, *args), daemon=True)
    process.start()
    return process


def _begin(packages: list[str], target: Callable[..., None], *args: Any) -> None:
    import_packages(*packages)
    target(*args)


def _serve(connection: Any) -> None:
    import torch

    torch.set_num_threads(1)
    silence()
    while (job := connection.recv()) is not None:
        connection.send(tuple(attempt(job)))


class Worker:
    """A process that does one job after the other; one that hangs or dies is replaced."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None

    def call(self, job: Callable[[], Any], limit_s: float) -> Outcome:
        """Do a job (importable by name, `partial` included) and wait for at most `limit_s`."""
        if self._process is None:
            self._connection, theirs = multiprocessing.Pipe()
            self._process = start(_serve, theirs)
            theirs.close()
        try:
            self._connection.send(job)
            if self._connection.poll(limit_s):
                return Outcome(*self._connection.recv())
            outcome = Outcome("hang", message=f"no end after {limit_s:g} s")
        except (EOFError, OSError):
            self._process.join(5)
            outcome = Outcome("signal", message=f"the process ended with {self._process.exitcode}")
        self.close()
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def run_all(jobs: Iterable[Callable[[], Any]], bench: Bench) -> list[Outcome]:
    """The outcomes of jobs, in order, done by several processes."""
    own, workers = threading.local(), []

    def call(job: Callable[[], Any]) -> Outcome:
        if not hasattr(own, "worker"):
            own.worker = Worker()
            workers.append(own.worker)
        return own.worker.call(job, bench.limit_s)

    with ThreadPoolExecutor(bench.processes) as pool:
        try:
            return list(pool.map(call, jobs))
        finally:
            for worker in workers:
                worker.close()


def alone(job: Callable[[], Any], bench: Bench) -> Outcome:
    """Do one job in a fresh process."""
    worker = Worker()
    try:
        return worker.call(job, bench.limit_s)
    finally:
        worker.close()


__all__ = ["Bench", "Outcome", "Row", "Worker", "alone", "attempt", "counted", "partial", "run_all", "start"]
