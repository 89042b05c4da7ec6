"""What the checks share: rows of the table, and jobs run in processes that may hang or die."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from tango.errors import TangoError
from tango.extensions import import_packages, imported

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

    from tango.evaluation import Question

Job: TypeAlias = Callable[[], object]
# Loaded once, by the server from which all processes are forked.
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
    """What every check needs: a folder to work in, the seed, and how thorough it should be."""

    folder: Path
    seed: int = 0
    full: bool = False
    processes: int = 2
    limit_s: float = 20.0  # for one job in a process of its own


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was tried, how often, the target, and the outcome."""

    check: str  # R1 to R9
    what: str
    tried: int
    target: str
    got: str
    passed: bool
    faults: tuple[str, ...] = ()  # the first few, in words

    def to_dict(self) -> dict[str, object]:
        """The row as plain values."""
        return {**asdict(self), "faults": list(self.faults)}


def counted(check: str, what: str, tried: int, faults: Sequence[str], *, noun: str = "faults") -> Row:
    """A row whose target is no faults at all; if nothing was tried, the target is missed."""
    got = f"{len(faults)} {noun}" if tried else "nothing could be tried"
    passed = tried > 0 and not faults
    return Row(
        check=check, what=what, tried=tried, target=f"0 {noun}", got=got, passed=passed, faults=tuple(faults[:20])
    )


class Outcome(NamedTuple):
    """The outcome of one job."""

    kind: Literal["ok", "refused", "crash", "hang", "signal"]  # refused: a TangoError; crash: any other exception
    value: Any = None  # what the job returned, as plain values
    message: str = ""
    warned: tuple[str, ...] = ()


def question_about(video: str | Path, text: str, **options: Any) -> Question:
    """A question about one video."""
    from tango.evaluation import Question

    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": text}]
    return Question(messages=[{"role": "user", "content": content}], **options)


def attempt(job: Job) -> Outcome:
    """Run a job in this process and return its outcome, with its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = Outcome("ok", job())
        except TangoError as error:
            outcome = Outcome("refused", message=f"{type(error).__name__}: {error}")
        except Exception as error:
            outcome = Outcome("crash", message=f"{type(error).__name__}: {' '.join(str(error).split())}")
    own = tuple(str(w.message) for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning)))
    return outcome._replace(warned=own)


def silence() -> None:
    """Stop this process from printing, since native libraries write straight to the terminal.

    Also keep tqdm from making semaphores, which would be left behind when the process is killed.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())
    with open(os.devnull, "wb") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)


def start(target: Callable[..., None], *args: object) -> ForkServerProcess:
    """Start a process with the libraries already loaded, forked from a server that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_begin, args=(imported(), target, *args), daemon=True)
    process.start()
    return process


def _begin(packages: list[str], target: Callable[..., None], *args: object) -> None:
    import_packages(*packages)
    target(*args)


def _serve(connection: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    silence()
    while (job := connection.recv()) is not None:
        connection.send(tuple(attempt(job)))


class Worker:
    """A process that runs one job after the other; if it hangs or dies, it is replaced."""

    def __init__(self) -> None:
        self._running: tuple[ForkServerProcess, Connection] | None = None

    def call(self, job: Job, limit_s: float) -> Outcome:
        """Run a job (importable by name, or a `partial` of such) and wait for it for at most `limit_s`."""
        if self._running is None:
            ours, theirs = multiprocessing.Pipe()
            self._running = start(_serve, theirs), ours
            theirs.close()
        process, connection = self._running
        try:
            connection.send(job)
            if connection.poll(limit_s):
                return Outcome(*connection.recv())
            outcome = Outcome("hang", message=f"no end after {limit_s:g} s")
        except (EOFError, OSError):
            process.join(5)
            outcome = Outcome("signal", message=f"the process ended with {process.exitcode}")
        self.close()
        return outcome

    def close(self) -> None:
        """End the process."""
        if self._running is not None:
            process, connection = self._running
            process.kill()
            process.join()
            connection.close()
            self._running = None


def run_all(jobs: Iterable[Job], bench: Bench) -> list[Outcome]:
    """Run jobs in several processes; their outcomes, in the order of the jobs."""
    own = threading.local()
    with ThreadPoolExecutor(bench.processes) as pool, ExitStack() as workers:

        def call(job: Job) -> Outcome:
            if not hasattr(own, "worker"):
                own.worker = workers.enter_context(closing(Worker()))
            return own.worker.call(job, bench.limit_s)

        return list(pool.map(call, jobs))


def alone(job: Job, bench: Bench) -> Outcome:
    """Run one job in a fresh process."""
    with closing(Worker()) as worker:
        return worker.call(job, bench.limit_s)
