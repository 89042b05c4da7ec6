"""The one form of recorded results: `records.jsonl`, one judged question a line, and `run.json`, what holds for all.

    write_records(Path("out/records.jsonl"), {"model": "LLaVA-OneVision-7B", "method": {"method": "none"}}, [
        {"benchmark": "Video-MME", "question_id": "001-1", "video_id": "fFjv93ACGo8", "correct": True}])
    runs, notes = read_records(Path("out/records.jsonl"))

docs/file-formats.md describes the fields. What holds for all lines stands in the run's file, what holds for one
benchmark under its name in `benchmarks` there; a line may have any of these fields itself, and then the line counts.
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
from tango.report.results import Run, Scored, checked_method, is_number, read_json, read_json_lines, shown, unreadable

SCHEMA = 1
_EITHER = "text or a number"
# Fields by where they may stand, and what they are. None: what the field is about was not recorded.
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
    """Where the run of a file of records stands: `run.json` for `records.jsonl`, `x.run.json` for `x.jsonl`."""
    if records.name.endswith("records.jsonl"):
        return records.with_name(f"{records.name.removesuffix('records.jsonl')}run.json")
    return records.with_name(f"{records.stem}.run.json")


def write_records(path: Path, run: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of records, and its run beside it, each in one step: a run without records is an unfinished one.

    Raises:
        TypeError: a field is missing or not what it must be, or a question is there twice.
        WriteError: one cannot be written; what was there before is untouched.
    """
    run, lines = {"schema": SCHEMA, **run}, list(records)
    _check_run(run)
    first: dict[tuple[str, str], int] = {}
    for number, line in enumerate(lines, start=1):
        _check(record := {**_shared(run, line), **line})
        _check_once(record, number, first)
    write_json(run_file(path), run)
    write_bytes(path, _as_bytes(lines))


def append_records(path: Path, records: Iterable[Mapping[str, Any]], kept: str) -> None:
    """Append lines to a file of records; they have arrived on the disk when this returns.

    Args:
        kept: what is left where that fails, as the end of a sentence.
    Raises:
        WriteError: they cannot be written.
    """
    with writing(path, kept), path.open("ab") as file:
        file.write(_as_bytes(records))
        file.flush()
        os.fsync(file.fileno())


def _as_bytes(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read_run(records: Path) -> dict[str, Any]:
    """What a file of records says of all its lines; nothing if it has no file of its run.

    Raises:
        TangoError: that file is not as it should be; the message names the field.
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
    """The runs in a file of records, one for each model, method and benchmark.

    A last line that was cut off, as by a killed process, is left out with a note.

    Raises:
        TangoError: the file cannot be read, or a line is not as it should be; the message names line and field.
    """
    run, found = read_run(path), Found([], [])
    lines, cut_off = read_json_lines(path)
    if cut_off and not (lines or run):
        raise unreadable(path, "line 1: expected a JSON object, got something else")
    if cut_off:
        found.notes.append(f"{path}: its last line is cut off and left out; the command that writes it goes on there")
    parts: dict[str, list[dict[str, Any]]] = {}
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


def _shared(run: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    """What a run says of a line."""
    own = (run.get("benchmarks") or {}).get(str(line.get("benchmark")), {})
    return {name: value for name, value in {**run, **own}.items() if name in _OF_A_RUN}


def _check_run(run: Any) -> None:
    """Raise TypeError unless a run has the schema's number, and every field is what it must be."""
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


def _check(record: Mapping[str, Any]) -> None:
    """Raise TypeError unless a line, with what its run says of it, has what it needs, and all is what it must be."""
    for name in (*_NEEDED, "video_id"):
        if name not in record:
            raise TypeError(f"it has no {name!r}")
    _check_fields(record, _OF_A_LINE)
    checked_method(record["method"])


def _check_once(record: Mapping[str, Any], number: int, seen: dict[tuple[str, str], int]) -> str:
    """Which run a line belongs to. Raise TypeError if an earlier line, by number in `seen`, has its question."""
    key = json.dumps([record[name] for name in ("model", "method", "benchmark")], sort_keys=True)
    first = seen.setdefault((key, str(record["question_id"])), number)
    if first != number:
        what = f"question {record['question_id']} of {record['benchmark']}"
        raise TypeError(f"{what} is there twice, first in line {first}")
    return key


def _check_fields(record: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if name not in record or (record[name] is None and name not in (*_NEEDED, "schema")):
            continue
        if not _KINDS[kind](record[name]):
            raise TypeError(f"{name} must be {kind}, got {shown(record[name])}")


def _run(source: Path, records: list[dict[str, Any]]) -> Run:
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


def _judged(record: Mapping[str, Any]) -> Scored:
    clip, group = (None if record.get(name) is None else str(record[name]) for name in ("video_id", "group"))
    return Scored(str(record["question_id"]), record["correct"] and not record.get("failed"), clip, group)


def _mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    """Over the questions that have this count; else what the run says."""
    counts = [record[name] for record in records if record.get(name) is not None]
    return math.fsum(counts) / len(counts) if counts else records[0].get(f"mean_{name}")
