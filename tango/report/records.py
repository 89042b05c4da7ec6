"""The form of recorded results: `records.jsonl` has one judged question per line, `run.json` what holds for all lines.

docs/file-formats.md describes the fields. The run's file holds what is true of all lines and, in `benchmarks`, what is
true of one benchmark; a line may have any of these fields itself, and then the line counts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tango.files import write_bytes, write_json, writing
from tango.report.benchmarks import benchmark
from tango.report.results import (
    Json,
    Run,
    Scored,
    checked_method,
    is_number,
    read_json,
    read_json_lines,
    shown,
    unreadable,
)

SCHEMA = 1
_EITHER = "text or a number"
# Where each field may stand, and what it must be. A null says that this was not recorded.
_OF_A_BENCHMARK = {
    "num_questions": "a whole number", "num_frames": "a whole number", "num_failed": "a whole number",
    "mean_tokens_before": "a number", "mean_tokens_after": "a number",
}  # fmt: skip
_OF_A_RUN = {
    "schema": f"{SCHEMA}", "model": "text", "method": "an object", "limit": "a number", "date": "text",
    **_OF_A_BENCHMARK,
}  # fmt: skip
_OF_A_LINE = {
    **_OF_A_RUN, "benchmark": "text", "question_id": _EITHER, "video_id": _EITHER, "correct": "true or false",
    "group": _EITHER, "text": "text", "answer": "text", "failed": "true or false", "error": "text",
    "tokens_before": "a number", "tokens_after": "a number",
}  # fmt: skip
_NEEDED = ("model", "method", "benchmark", "question_id", "correct")
_KINDS = {
    f"{SCHEMA}": lambda value: value == SCHEMA and is_number(value),
    "text": lambda value: isinstance(value, str),
    _EITHER: lambda value: isinstance(value, str) or is_number(value),
    "a number": lambda value: is_number(value),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
}


class Found(NamedTuple):
    """Runs, and notes on what is missing, one line each."""

    runs: list[Run]
    notes: list[str]


def run_file(records: Path) -> Path:
    """The file of the run beside a file of records: `run.json` for `records.jsonl`, `x.run.json` for `x.jsonl`."""
    if records.name.endswith("records.jsonl"):
        return records.with_name(f"{records.name.removesuffix('records.jsonl')}run.json")
    return records.with_name(f"{records.stem}.run.json")


def write_records(path: Path, run: Json, records: Iterable[Json]) -> None:
    """Write a file of records and the file of its run, each in one step. A run without records is an unfinished one.

    Raises:
        TypeError: a field is missing or not what it must be, or a question is there twice.
        WriteError: a file cannot be written; what was there before is untouched.

    Example:
        >>> run = {"model": "LLaVA-OneVision-7B", "method": {"method": "none"}}
        >>> record = {"benchmark": "Video-MME", "question_id": "001-1", "video_id": "fFjv93ACGo8", "correct": True}
        >>> write_records(Path("records.jsonl"), run, [record])
        >>> read_records(Path("records.jsonl")).runs[0].questions
        (Scored(question_id='001-1', correct=True, video_id='fFjv93ACGo8', group=None, text=None),)
    """
    run, lines = {"schema": SCHEMA, **run}, list(records)
    _check_run(run)
    first: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, start=1):
        _check(record := {**_shared(run, line), **line})
        _check_once(record, number, first)
    write_json(run_file(path), run)
    write_bytes(path, _as_bytes(lines))


def append_records(path: Path, records: Iterable[Json], kept: str) -> None:
    """Append lines to a file of records; they are on the disk when this returns.

    Args:
        kept: says, as the end of an error, what is left if writing fails.
    Raises:
        WriteError: the lines cannot be written.

    Example:
        >>> append_records(Path("records.jsonl"), [{"question_id": "001-1", "correct": True}], kept="the others stay")
        >>> print(Path("records.jsonl").read_text(), end="")
        {"question_id": "001-1", "correct": true}
    """
    with writing(path, kept), path.open("ab") as file:
        file.write(_as_bytes(records))
        file.flush()
        os.fsync(file.fileno())


def _as_bytes(records: Iterable[Json]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read_run(records: Path) -> dict[str, Any]:
    """Read what holds for all lines of a file of records; nothing if the file of its run is missing.

    Raises:
        TangoError: the file of the run is malformed; the message names the field.
    """
    path = run_file(records)
    if not path.is_file():
        return {}
    run = read_json(path)
    try:
        _check_run(run)
    except TypeError as error:
        raise unreadable(path, error) from error
    return run


def read_records(path: Path) -> Found:
    """Read the runs in a file of records, one for each model, method and benchmark.

    A last line that was cut off, as when a process is killed, is left out with a note.

    Raises:
        TangoError: the file cannot be read, or a line is malformed; the message names line and field.
    """
    run, found = read_run(path), Found([], [])
    lines, cut_off = read_json_lines(path)
    if cut_off and not (lines or run):
        raise unreadable(path, "line 1: expected a JSON object, got something else")
    if cut_off:
        found.notes.append(f"{path}: its last line is cut off and left out; the command that writes it goes on there")
    parts: dict[str, list[Json]] = {}
    seen: dict[tuple[str, str], int] = {}
    for number, line in lines:
        record = {**_shared(run, line), **line}
        try:
            _check(record)
            parts.setdefault(_check_once(record, number, seen), []).append(record)
        except TypeError as error:
            raise unreadable(path, f"line {number}: {error}") from error
    source = path.parent if path.name == "records.jsonl" else path
    for name, about in (run.get("benchmarks") or {}).items():
        if about.get("error") is not None:
            found.notes.append(f"{source}: {benchmark(name).name} failed: {' '.join(about['error'].split())}")
    found.runs.extend(_run(source, part) for part in parts.values())
    return found


def _shared(run: Json, line: Json) -> Json:
    """What the run says about a line: fields of the run, and those of the line's benchmark."""
    own = (run.get("benchmarks") or {}).get(str(line.get("benchmark")), {})
    return {name: value for name, value in {**run, **own}.items() if name in _OF_A_RUN}


def _check_run(run: object) -> None:
    """Raise TypeError unless a run has the number of the schema, and every field is what it must be."""
    if not isinstance(run, dict):
        raise TypeError(f"expected an object, got {shown(run)}")
    if "schema" not in run:
        raise TypeError("it has no 'schema'")
    _check_fields(run, {**_OF_A_RUN, "settings": "an object", "environment": "an object", "benchmarks": "an object"})
    for name, about in (run.get("benchmarks") or {}).items():
        if not isinstance(about, dict):
            raise TypeError(f"benchmarks: {name} must be an object, got {shown(about)}")
        try:
            _check_fields(about, {**_OF_A_BENCHMARK, "error": "text"})
        except TypeError as error:
            raise TypeError(f"benchmarks: {name}: {error}") from error
    if "method" in run:
        checked_method(run["method"])


def _check(record: Json) -> None:
    """Raise TypeError unless a line, with its run, has all fields that it needs, and each is what it must be."""
    for name in (*_NEEDED, "video_id"):
        if name not in record:
            raise TypeError(f"it has no {name!r}")
    _check_fields(record, _OF_A_LINE)
    checked_method(record["method"])


def _check_once(record: Json, number: int, seen: dict[tuple[str, str], int]) -> str:
    """The key of the run that a line belongs to. Raise TypeError if an earlier line in `seen` has the same question."""
    key = json.dumps([record[name] for name in ("model", "method", "benchmark")], sort_keys=True)
    first = seen.setdefault((key, str(record["question_id"])), number)
    if first != number:
        what = f"question {record['question_id']} of {record['benchmark']}"
        raise TypeError(f"{what} is there twice, first in line {first}")
    return key


def _check_fields(record: Json, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if name not in record or (record[name] is None and name not in (*_NEEDED, "schema")):
            continue
        if not _KINDS[kind](record[name]):
            raise TypeError(f"{name} must be {kind}, got {shown(record[name])}")


def _run(source: Path, records: list[Json]) -> Run:
    first = records[0]
    known = benchmark(first["benchmark"])
    failed = [record["failed"] for record in records if record.get("failed") is not None]
    return Run(
        source=source,
        model=first["model"],
        method=first["method"],
        benchmark=known,
        questions=tuple(_judged(record) for record in records),
        num_expected=first.get("num_questions", known.num_questions),
        num_frames=first.get("num_frames"),
        limited=first.get("limit") is not None,
        date=max(record.get("date") or "" for record in records),
        tokens_before=_mean_of(records, "tokens_before"),
        tokens_after=_mean_of(records, "tokens_after"),
        num_failed=sum(failed) if failed else first.get("num_failed"),
    )


def _judged(record: Json) -> Scored:
    own = (None if record.get(name) is None else str(record[name]) for name in ("video_id", "group", "text"))
    return Scored(str(record["question_id"]), record["correct"] and not record.get("failed"), *own)


def _mean_of(records: list[Json], name: str) -> float | None:
    """The mean over the questions that have this count; without any, the mean that the run states."""
    counts = [record[name] for record in records if record.get(name) is not None]
    return math.fsum(counts) / len(counts) if counts else records[0].get(f"mean_{name}")
