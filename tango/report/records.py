"""Judged questions as JSON lines, the form for results of any other program.

    {"model": "LLaVA-OneVision-7B", "method": {"method": "tango", "options": {"retention_ratio": 0.1}},
     "benchmark": "Video-MME", "question_id": "001-1", "video_id": "fFjv93ACGo8", "correct": true}

`method` has the fields of `tango.evaluation.MethodConfig`. A line may also have `group` (such as Video-MME's duration),
`failed` (true: the question got no answer, and counts as wrong), `num_questions` (of the whole benchmark),
`num_frames`, `date` (ISO 8601, of the run), and visual tokens: `tokens_before` without pruning, and `tokens_after`,
what is left of them in the mean over the LLM's layers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tango.report.benchmarks import benchmark
from tango.report.results import Run, checked_method, judged, read_json_lines, shown, unreadable

_NEEDED = {
    "model": "text", "method": "an object", "benchmark": "text", "question_id": "text or a number",
    "video_id": "text or a number", "correct": "true or false",
}  # fmt: skip
_OPTIONAL = {
    "group": "text or a number", "failed": "true or false", "num_questions": "a whole number",
    "num_frames": "a whole number", "date": "text", "tokens_before": "a number", "tokens_after": "a number",
}  # fmt: skip
_KINDS = {
    "text": lambda value: isinstance(value, str),
    "text or a number": lambda value: isinstance(value, str) or _is_number(value),
    "a number": lambda value: _is_number(value),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "true or false": lambda value: isinstance(value, bool),
    "an object": lambda value: isinstance(value, dict),
}


def read_records(path: Path) -> list[Run]:
    """The runs in a file, one for each model, method and benchmark.

    Raises:
        TangoError: the file cannot be read, or a line is not as it should be; the message names the line.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for number, record in read_json_lines(path):
        try:
            _check(record)
            checked_method(record["method"])
        except TypeError as error:
            raise unreadable(path, f"line {number}: {error}") from error
        which = json.dumps([record[name] for name in ("model", "method", "benchmark")], sort_keys=True)
        parts.setdefault(which, []).append(record)
    return [_run(path, records) for records in parts.values()]


def _check(record: dict[str, Any]) -> None:
    """Raise TypeError unless every field is of its kind."""
    for name, kind in {**_NEEDED, **_OPTIONAL}.items():
        if record.get(name) is None and name in _OPTIONAL:
            continue
        if name not in record:
            raise TypeError(f"it has no {name!r}")
        if not _KINDS[kind](record[name]):
            raise TypeError(f"{name} must be {kind}, got {shown(record[name])}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _run(path: Path, records: list[dict[str, Any]]) -> Run:
    first = records[0]
    known = benchmark(first["benchmark"])
    failed = [record["failed"] for record in records if record.get("failed") is not None]
    return Run(
        source=path,
        model=first["model"],
        method=first["method"],
        benchmark=known,
        questions=tuple(
            judged(
                str(record["question_id"]),
                record["correct"] and not record.get("failed"),
                record["video_id"],
                record.get("group"),
            )
            for record in records
        ),
        num_expected=first.get("num_questions", known.num_questions),
        num_frames=first.get("num_frames"),
        date=max(record.get("date") or "" for record in records),
        tokens_before=_mean_of(records, "tokens_before"),
        tokens_after=_mean_of(records, "tokens_after"),
        num_failed=sum(failed) if failed else None,
    )


def _mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    counts = [record[name] for record in records if record.get(name) is not None]
    return sum(counts) / len(counts) if counts else None
