"""Recorded runs as lists of judged questions, whichever program they come from. `tango.report.readers` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tango.errors import TangoError
from tango.report.benchmarks import Benchmark

Json = Mapping[str, Any]  # an object of JSON: a record, or a method's configuration (the fields of a `MethodConfig`)


@dataclass(frozen=True, slots=True)
class Scored:
    """One question and whether it was answered correctly."""

    question_id: str
    correct: bool
    video_id: str | None = None  # None: not recorded
    group: str | None = None  # the benchmark's own group of questions
    text: str | None = None  # what the model said; None: not recorded


@dataclass(frozen=True, kw_only=True)
class Run:
    """The answers of one model with one method to one benchmark."""

    source: Path
    model: str
    method: Json
    benchmark: Benchmark
    questions: tuple[Scored, ...]
    num_expected: int | None  # number of questions in the whole benchmark; None: not known
    num_frames: int | None = None  # frames of each video; None: not recorded
    limited: bool = False  # whether only a part of the benchmark was asked for
    date: str = ""
    tokens_before: float | None = None  # mean number of visual tokens per question
    tokens_after: float | None = None  # how many are left, in the mean over the LLM's layers; None: not recorded
    num_failed: int | None = None  # questions without an answer, which count as wrong; None: not recorded

    @property
    def partial(self) -> bool:
        """Whether the run covers only a part of the benchmark."""
        return self.limited or (self.num_expected is not None and len(self.questions) < self.num_expected)

    @property
    def failures(self) -> str | None:
        """A sentence about failed questions; None if none failed, or it is not known."""
        if not self.num_failed:
            return None
        count = f"{self.num_failed} of {len(self.questions)} questions failed and count as wrong"
        most = "; this accuracy says little about the model" if self.num_failed > len(self.questions) / 2 else ""
        return f"{self.source} ({self.benchmark.name}): {count}{most}"

    @property
    def key(self) -> tuple[str, str, str]:
        """What the run measures: runs with equal keys are repetitions."""
        return self.model, identity(self.method), self.benchmark.name


@dataclass(frozen=True)
class Results:
    """Runs, and notes that a reader of the tables must know, one line each."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]


def choose(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Choose one run of each model, method and benchmark, whole before partial, then the latest; a note on every other.

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


def identity(method: Json) -> str:
    """A text that is the same for equal configurations, however their numbers and lists were written.

    Settings that are None do not count: they may not have existed yet when a run was recorded.

    Example:
        >>> identity({"method": "tango", "saliency": None}) == identity({"method": "tango"})
        True
    """

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {name: plain(part) for name, part in value.items() if part is not None}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    return json.dumps(plain(method), sort_keys=True)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        TangoError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, _why(error)) from error


def read_json_lines(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], bool]:
    """Read a file with one JSON object per line: the objects with their line numbers, and whether the last was cut off.

    Blank lines do not count. A last line without a line end that is no JSON was cut off, and does not count either.

    Raises:
        TangoError: it cannot be read, or a line is not an object.
    """
    records = []
    try:
        lines = path.read_text(encoding="utf-8").split(
            "\n"
        )  # splitlines would also split at other characters, which a text may hold
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, got {shown(record)}")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                return records, True
            raise unreadable(path, f"line {number}: {_why(error)}") from error
        records.append((number, record))
    return records, False


def _why(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def unreadable(path: Path, reason: object) -> TangoError:
    """The error for a file of results that is malformed."""
    return TangoError(f"cannot read {path}: {reason}; run that evaluation again, or leave its folder out of --results")


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def checked_method(value: object) -> Json:
    """Return a recorded configuration of a method.

    Raises:
        TypeError: the value is no such configuration; the message says what was got.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("method"), str):
        raise TypeError(f'method must be an object such as {{"method": "tango", "options": {{}}}}, got {shown(value)}')
    for name in ("options", "layer_options"):
        if not isinstance(value.get(name, {}), Mapping):
            raise TypeError(f"{name} of a method must be an object, got {shown(value[name])}")
    weights = value.get("weights", {})
    if not isinstance(weights, Mapping) or not all(isinstance(held, str) for held in weights.values()):
        raise TypeError(f"weights of a method must be an object of hashes, got {shown(weights)}")
    for ratio in (value.get("mean_retention_ratio"), value.get("options", {}).get("retention_ratio")):
        if ratio is not None and not is_number(ratio):
            raise TypeError(f"a method's retention ratio must be a number, got {shown(ratio)}")
    return value


def shown(value: object) -> str:
    """The start of a value, as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
