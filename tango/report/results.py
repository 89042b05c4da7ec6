"""Recorded runs as lists of judged questions, whichever toolkit they come from (`tango.report.readers` reads them)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango.errors import TangoError
from tango.report.benchmarks import Benchmark


@dataclass(frozen=True, slots=True)
class Judged:
    """One question with its verdict."""

    question_id: str
    correct: bool
    video_id: str | None = None  # None: not recorded
    group: str | None = None  # of the benchmark's own grouping


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one model with one method answered to one benchmark."""

    source: Path
    model: str
    method: Mapping[str, Any]  # the fields of a MethodConfig
    benchmark: Benchmark
    questions: tuple[Judged, ...]
    num_expected: int | None  # questions of the whole benchmark; None: not known
    num_frames: int | None = None  # of each video; None: not recorded
    limited: bool = False  # asked for a part of the benchmark only
    date: str = ""
    tokens_before: float | None = None  # visual tokens of a question, in the mean
    tokens_after: float | None = None  # of these, what is left in the mean over the LLM's layers; None: not recorded

    @property
    def partial(self) -> bool:
        """Whether this is less than the whole benchmark, so that its accuracy is that of a part."""
        return self.limited or (self.num_expected is not None and len(self.questions) < self.num_expected)

    @property
    def key(self) -> tuple[str, str, str]:
        """Runs with equal keys are repetitions of each other."""
        return self.model, identity(self.method), self.benchmark.name


@dataclass(frozen=True)
class Results:
    """Runs, and what a reader of the tables must know about them: `notes`, one line each."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def choose(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """One run of each model, method and benchmark, and a note on every other: whole before partial, then the latest.

    Runs are never pooled.
    """
    best: dict[tuple[str, str, str], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (not run.partial, run.date, str(run.source))):  # the best is last
        if (other := best.get(run.key)) is not None:
            why = "whole" if other.partial and not run.partial else "newer"
            notes.append(f"{other.source} ({run.benchmark.name}) is left out: {run.source} is {why}")
        best[run.key] = run
    return list(best.values()), notes


def identity(method: Mapping[str, Any]) -> str:
    """A text that is the same for equal configurations, however their numbers and lists were written.

    What is None does not count: a setting that did not exist yet when a run was recorded.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(part) for name, part in value.items() if part is not None}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return json.dumps(plain(method), sort_keys=True)


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        TangoError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one per line.

    Raises:
        TangoError: it cannot be read, or a line is not an object.
    """
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("expected an object")
        except ValueError as error:
            raise unreadable(path, f"line {number}: {error}") from error
        records.append(record)
    return records


def unreadable(path: Path, reason: object) -> TangoError:
    """The error for a file of results that is not what it should be."""
    return TangoError(f"cannot read {path}: {reason}; run that evaluation again, or leave its folder out of --results")


def number_or_none(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
