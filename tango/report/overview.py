"""Recorded runs, one per line: accuracy, tokens kept, and the paired difference to all tokens or to another run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from tango.errors import UnknownNameError
from tango.report.curves import share_kept
from tango.report.intervals import Estimate, accuracies, paired_difference
from tango.report.results import Json, Run
from tango.report.text import markdown as markdown_table


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run; numbers are in percent, intervals are 95 % intervals over clips."""

    model: str
    benchmark: str
    method: str
    retention_ratio: float | None
    tokens_percent: float | None  # None: every question failed, so nothing was pruned
    accuracy: float
    interval: tuple[float, float] | None
    against: str  # the run that `minus` is the difference to
    minus: float | None
    minus_interval: tuple[float, float] | None
    same_answers: float | None  # share of the questions that both were asked on which both said the same words
    num_questions: int
    num_clips: int
    num_expected: int | None
    num_failed: int | None  # questions without an answer, counted as wrong; None: not recorded
    groups: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """All fields, rounded."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def lines(
    runs: Sequence[Run], label: Callable[[Json], str], *, against: str | None = None, seed: int = 0
) -> list[Line]:
    """One line for each run, sorted; all tokens come first.

    Args:
        runs: one run for each model, method and benchmark.
        label: names a method's configuration without its ratio.
        against: such a name; every run is compared with the run of this name at its own ratio. None: with all tokens.
    Raises:
        UnknownNameError: no run is called `against`.
    """
    against = None if against == "none" else against
    if against is not None and against not in (known := {label(run.method) for run in runs}):
        raise UnknownNameError("run", against, known)

    def place(run: Run) -> tuple[str, str, float | None]:
        return run.model, run.benchmark.name, None if against is None else _ratio(run.method)

    references = {place(run): run for run in runs if label(run.method) == (against or "none")}
    found = []
    for run in runs:
        estimates = accuracies(run.questions, run.benchmark, seed=seed)
        reference = references.get(place(run))
        minus: Estimate | None = None
        if reference is not None and reference is not run:
            minus = paired_difference(run.questions, reference.questions, run.benchmark, seed=seed)[None]
        found.append(
            Line(
                model=run.model,
                benchmark=run.benchmark.name,
                method=label(run.method),
                retention_ratio=_ratio(run.method),
                tokens_percent=None if run.num_failed == len(run.questions) else 100 * share_kept(run),
                accuracy=estimates[None].value,
                interval=estimates[None].interval(),
                against=against or "all tokens",
                minus=None if minus is None else minus.value,
                minus_interval=None if minus is None else minus.interval(),
                same_answers=None if minus is None or reference is None else _same_answers(run, reference),
                num_questions=estimates[None].num_questions,
                num_clips=estimates[None].num_clips,
                num_expected=run.num_expected,
                num_failed=run.num_failed,
                groups={str(name): estimate.value for name, estimate in estimates.items() if name is not None},
            )
        )
    return sorted(found, key=lambda line: (line.model, line.benchmark, line.retention_ratio or 0, line.method))


def markdown(found: Sequence[Line]) -> str:
    """The lines as a Markdown table."""
    header = (
        "model", "benchmark", "method", "ratio", "tokens kept, %", "accuracy, % [95 %]",
        f"minus {found[0].against if found else 'all tokens'} [95 %]", "same answers, %", "questions", "clips",
        "failed",
    )  # fmt: skip
    rows = [header]
    for line in found:
        ratio = "-" if line.retention_ratio is None else f"{line.retention_ratio:g}"
        whole = "" if line.num_expected in (None, line.num_questions) else f" of {line.num_expected}"
        accuracy = f"{line.accuracy:.1f}{_bracket(line.interval, '.1f')}"
        minus = "-" if line.minus is None else f"{line.minus:+.1f}"
        minus += _bracket(line.minus_interval, "+.1f")
        kept = "-" if line.tokens_percent is None else f"{line.tokens_percent:.1f}"
        counts = f"{line.num_questions}{whole}", f"{line.num_clips}", _or_dash(line.num_failed)
        same = "-" if line.same_answers is None else f"{line.same_answers:.1f}"
        rows.append((line.model, line.benchmark, line.method, ratio, kept, accuracy, minus, same, *counts))
    return markdown_table(rows)


def _same_answers(run: Run, reference: Run) -> float | None:
    """In percent; None where a run has no texts."""
    theirs = {question.question_id: question.text for question in reference.questions}
    pairs = [(mine.text, theirs[mine.question_id]) for mine in run.questions if mine.question_id in theirs]
    known = [mine.strip() == other.strip() for mine, other in pairs if mine is not None and other is not None]
    return 100 * sum(known) / len(known) if known else None


def _or_dash(count: int | None) -> str:
    return "-" if count is None else str(count)


def _ratio(method: Json) -> float | None:
    if (mean := method.get("mean_retention_ratio")) is not None:
        return float(mean)
    ratio = method.get("options", {}).get("retention_ratio")
    return None if ratio is None else float(ratio)


def _bracket(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, (tuple, list)):
        return [_rounded(part) for part in value]
    return {name: _rounded(part) for name, part in value.items()} if isinstance(value, dict) else value
