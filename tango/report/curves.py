"""Accuracy against the visual tokens that are left, in numbers; `tango.report.plots` draws them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tango.errors import TangoError
from tango.report.benchmarks import refuse_two_sets
from tango.report.intervals import accuracies, average
from tango.report.results import Json, Run, identity

COLUMNS = ("method", "tokens_percent", "accuracy", "low", "high", "num_questions", "partial")


@dataclass(frozen=True, order=True)
class Point:
    """One method at one ratio; all numbers are in percent."""

    method: str
    tokens_percent: float
    accuracy: float
    low: float | None
    high: float | None
    num_questions: int
    partial: bool


def points(
    runs: Sequence[Run], label: Callable[[Json], str], benchmarks: Sequence[str] = (), *, seed: int = 0
) -> tuple[list[Point], list[str]]:
    """The mean accuracy over benchmarks and the share of tokens of every method; a note for each method left out.

    Args:
        runs: runs of one model, one for each method and benchmark.
        label: names a method's configuration; a line joins the points of one name.
        benchmarks: the paper's names of the benchmarks; none: all that any run covers.
    Raises:
        TangoError: no method covers all benchmarks, or two of them are sets of one.
    """
    names = list(benchmarks) or sorted({run.benchmark.name for run in runs})
    refuse_two_sets(names)
    by_method: dict[str, dict[str, Run]] = {}
    for run in runs:
        by_method.setdefault(identity(run.method), {})[run.benchmark.name] = run
    found, notes = [], []
    for covered in by_method.values():
        some = next(iter(covered.values()))
        if missing := [name for name in names if name not in covered]:
            notes.append(f"{label(some.method)} is left out: it was not run on {', '.join(missing)}")
            continue
        chosen = [covered[name] for name in names]
        mean = average([accuracies(run.questions, run.benchmark, seed=seed)[None] for run in chosen])
        low, high = mean.interval() or (None, None)
        kept = 100 * sum(share_kept(run) for run in chosen) / len(chosen)
        partial = any(run.partial for run in chosen)
        found.append(Point(label(some.method), kept, mean.value, low, high, mean.num_questions, partial))
    if not found:
        raise TangoError(f"no method was run on all of {', '.join(names)}; choose fewer with --benchmarks")
    return sorted(found), notes


def measured_share(run: Run) -> float | None:
    """The share of visual tokens that is left in the mean over the LLM's layers, if it was recorded."""
    if not run.tokens_before or run.tokens_after is None or run.num_failed == len(run.questions):
        return None
    return run.tokens_after / run.tokens_before


def share_kept(run: Run) -> float:
    """The share of visual tokens that is left in the mean over the LLM's layers: as measured, else as configured."""
    if (measured := measured_share(run)) is not None:
        return measured
    mean = run.method.get("mean_retention_ratio")
    return float(run.method.get("options", {}).get("retention_ratio", 1.0) if mean is None else mean)


def csv_text(series: Sequence[Point]) -> str:
    """The points as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in series:
        values = [getattr(point, name) for name in COLUMNS]
        writer.writerow([round(v, 6) if isinstance(v, float) else int(v) if isinstance(v, bool) else v for v in values])
    return text.getvalue()
