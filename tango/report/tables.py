"""The paper's tables from recorded runs: our numbers with their intervals, and the paper's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tango.errors import TangoError, UnknownNameError
from tango.report.benchmarks import benchmark
from tango.report.curves import measured_share
from tango.report.experiments import Experiment, Row, run_line
from tango.report.intervals import Estimate, accuracies, average, paired_difference, ratio
from tango.report.results import Json, Results, Run, choose, identity

Resolve = Callable[[Json], Json]


@dataclass(frozen=True)
class Cell:
    """One number of a table; None where the runs do not give it."""

    ours: Estimate | None
    partial: bool  # whether it comes from a part of a benchmark
    published: float | None  # the paper's number
    comparable: bool  # with the paper's number: the same model on whole benchmarks, or a ratio
    num_failed: int = 0  # questions without an answer, which count as wrong, as far as recorded
    against: Estimate | None = None  # ours minus the reference, on the questions that both were asked

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.ours is None or self.published is None or self.partial or not self.comparable:
            return None
        return self.ours.value - self.published


@dataclass(frozen=True)
class TableRow:
    """One method in a table."""

    row: Row
    cells: dict[str, Cell]  # by column
    kept: (
        float | None
    )  # visual tokens left, in percent, as recorded, in the mean over the benchmarks; None: not recorded

    @property
    def nominal(self) -> float:
        """The ratio that was asked for, in percent."""
        return 100 * float(self.row.settings.get("retention_ratio", 1.0))


@dataclass(frozen=True)
class Table:
    """A table, ready to be rendered. `notes` say where its numbers come from and what is missing, one line each."""

    experiment: Experiment
    rows: tuple[TableRow, ...]
    against: str | None
    notes: tuple[str, ...]


def build(
    experiment: Experiment,
    results: Results,
    resolve: Resolve,
    *,
    model: str | None = None,
    against: str | None = None,
    seed: int = 0,
) -> Table:
    """Fill a table of the paper with recorded runs.

    Args:
        resolve: gives all fields of the configuration that a row's settings describe, as runs record it.
        model: fill the rows with runs of this model; None: fill each row with runs of the model that it names.
        against: a row's name, such as "tango"; every row is compared with the row of this name at its own ratio. None:
            the row that keeps all tokens, if there is one.
        seed: seeds the draws behind the intervals.
    Raises:
        UnknownNameError: no row is called `against`.
        TangoError: rows have results of different sets of one benchmark.
    """
    if model is not None:
        experiment = experiment.for_model(model)
    against = against or experiment.all_tokens
    fitting = [run for run in results.runs if _fits(run, experiment)]
    chosen, notes = choose([replace(run, model=_title(run.model, experiment)) for run in fitting])
    notes += [
        f"{run.source} ({run.benchmark.name}) is left out: it has {run.num_frames} frames, "
        f"the paper {experiment.num_frames_of(run.model)}" for run in results.runs if run not in fitting
    ]  # fmt: skip
    runs = {run.key: run for run in chosen}
    filled = _Filling(experiment, runs, resolve, seed)
    rows = tuple(
        filled.row(row, None if against is None else filled.reference(row, against)) for row in experiment.rows
    )
    notes += filled.other_sets()
    used = filled.used.values()
    notes += _partial(used)
    notes += [f"marked !: {run.failures}" for run in used if run.failures is not None]
    if unclear := sorted({run.benchmark.name for run in used if any(q.video_id is None for q in run.questions)}):
        notes.append(f"which clip a question is about is not recorded for {', '.join(unclear)}; each counts as its own")
    unused = [run for run in chosen if run.key not in filled.used]
    if other := sorted({str(run.source) for run in unused}):
        notes.append(f"in no row of this table: {', '.join(other)}")
    notes += sorted({note for run in unused if (note := filled.differs_in_one(run)) is not None})
    return Table(experiment, rows, against, (*experiment.notes, *results.notes, *notes, *filled.notes))


def _partial(runs: Iterable[Run]) -> list[str]:
    """Notes on runs that answered some of the questions, one note for all that answered as many."""
    parts: dict[Path, list[str]] = {}
    for run in runs:
        if run.partial:
            whole = "" if run.num_expected is None else f"/{run.num_expected}"
            parts.setdefault(run.source, []).append(f"{run.benchmark.name} {len(run.questions)}{whole}")
    alike: dict[str, list[Path]] = {}
    for source, names in parts.items():
        alike.setdefault(", ".join(names), []).append(source)
    return [
        f"partial, marked *: {sources[0] if len(sources) == 1 else f'{len(sources)} runs'}: {names} questions"
        for names, sources in alike.items()
    ]


def _title(model: str, experiment: Experiment) -> str:
    """One name for a model, whatever the toolkits call it."""
    return min(experiment.names_of(model))


def _fits(run: Run, experiment: Experiment) -> bool:
    """Whether a run has as many frames as the paper, if both numbers are known."""
    return run.num_frames is None or experiment.num_frames_of(run.model) in (None, run.num_frames)


class _Filling:
    """Fills the cells of one table from one set of runs."""

    def __init__(self, experiment: Experiment, runs: Mapping[tuple[str, str, str], Run], resolve: Resolve, seed: int):
        self.experiment, self.runs, self.resolve, self.seed = experiment, runs, resolve, seed
        self.notes = list[str]()
        self.used: dict[tuple[str, str, str], Run] = {}
        self.estimates: dict[tuple[str, str, str], dict[str | None, Estimate]] = {}

    def row(self, row: Row, reference: Row | None) -> TableRow:
        """All cells of a row."""
        runs = self.runs_of(row)
        differences = {} if reference is None or reference is row else self.differences(runs, self.runs_of(reference))
        full = self.runs_of(replace(row, settings={"method": "none"}))
        cells = {name: self.cell(row, name, runs, full, differences) for name in self.experiment.columns}
        shares = [measured_share(run) for name, run in runs.items() if name in self.experiment.average_over]
        known = [share for share in shares if share is not None]
        kept = 100 * sum(known) / len(known) if known and len(known) == len(shares) else None
        return TableRow(row, cells, kept)

    def runs_of(self, row: Row) -> dict[str, Run]:
        """The runs of a row, by benchmark."""
        method = identity(self.resolve(row.settings))
        keys = [(_title(row.model, self.experiment), method, name) for name in self.experiment.benchmarks]
        found = {key: self.runs[key] for key in keys if key in self.runs}
        self.used |= found
        return {name: run for (_, _, name), run in found.items()}

    def other_sets(self) -> list[str]:
        """Notes on runs of other sets than the table's, whose rows stay empty.

        Raises:
            TangoError: some rows have results of the table's set, and others of another set alone.
        """
        notes = []
        for name in self.experiment.benchmarks:
            of_table, of_others = [], []
            for row in self.experiment.rows:
                key = _title(row.model, self.experiment), identity(self.resolve(row.settings))
                if (run := self.runs.get((*key, name))) is not None:
                    of_table.append(run)
                    continue
                family = benchmark(name).family
                of_others += [r for r in self.runs.values() if r.key[:2] == key and r.benchmark.family == family]
            if of_table and of_others and not self.experiment.is_chosen:
                ours, other = of_table[0], of_others[0]
                raise TangoError(
                    f"this table would mix two sets of questions: {ours.benchmark.name} of {ours.source} and "
                    f"{other.benchmark.name} of {other.source}; run all rows on one, and name it with --benchmarks"
                )
            notes += [
                f"{run.source} is of {run.benchmark.name}, another set than {name}: to see it, --benchmarks "
                f'"{run.benchmark.name}"' for run in of_others
            ]  # fmt: skip
        return notes

    def differs_in_one(self, run: Run) -> str | None:
        """A note on a run that would be in a row but for its saliency or its positions."""
        for row in self.experiment.rows:
            if run.model != _title(row.model, self.experiment):
                continue
            expected, usual = self.resolve(row.settings), "the model's own"
            for name in ("saliency", "positions"):
                if identity({**run.method, name: None}) == identity({**expected, name: None}):
                    return (
                        f"{run.source} is no run of the row {run_line(row)!r}: {name} {run.method.get(name) or usual}, "
                        f"not {expected.get(name) or usual}"
                    )
        return None

    def cell(
        self, row: Row, column: str, runs: Mapping[str, Run], full: Mapping[str, Run],
        differences: Mapping[str, dict[str | None, Estimate]],
    ) -> Cell:  # fmt: skip
        published = row.published.get(column)
        same_model = not self.experiment.is_foreign
        names = self.experiment.average_over if column in ("average", "performance") else (column.partition("/")[0],)
        present = [runs[name] for name in names if name in runs]
        if len(present) < len(names):
            return Cell(None, False, published, same_model)
        partial = any(run.partial for run in present)
        failed = sum(run.num_failed or 0 for run in present)
        group = column.partition("/")[2] or None
        estimates = [self.of(run).get(group) for run in present]
        known = [estimate for estimate in estimates if estimate is not None]
        if len(known) < len(names):  # there is no question of this group
            return Cell(None, False, published, same_model)
        mean = average(known)
        if column == "performance":
            if not all(name in full and _ids(full[name]) == _ids(runs[name]) for name in names):
                return Cell(None, False, published, True)
            all_tokens = average([self.of(full[name])[None] for name in names])
            failed += sum(full[name].num_failed or 0 for name in names if full[name] is not runs[name])
            return Cell(ratio(mean, all_tokens) if all_tokens.value else None, partial, published, True, failed)
        against = [differences[name][group] for name in names if group in differences.get(name, {})]
        compared = average(against) if len(against) == len(names) else None
        return Cell(mean, partial, published, same_model, failed, compared)

    def of(self, run: Run) -> dict[str | None, Estimate]:
        """The accuracies of a run, computed once."""
        if run.key not in self.estimates:
            self.estimates[run.key] = accuracies(run.questions, run.benchmark, seed=self.seed)
        return self.estimates[run.key]

    def differences(self, runs: Mapping[str, Run], others: Mapping[str, Run]) -> dict[str, dict[str | None, Estimate]]:
        """The paired differences by benchmark and group, on benchmarks that both were run on."""
        found = {}
        for name in runs:
            if name in others:
                pair = runs[name].questions, others[name].questions
                try:
                    found[name] = paired_difference(*pair, benchmark(name), seed=self.seed)
                except TangoError as error:
                    self.notes.append(f"{runs[name].source} and {others[name].source}: {error}")
        return found

    def reference(self, row: Row, name: str) -> Row:
        """The row to compare `row` with: it has this name and the model of `row`, and the same ratio or none."""
        rows = [other for other in self.experiment.rows if other.name == name]
        if not rows:
            raise UnknownNameError(f"row of {self.experiment.heading}", name, {r.name for r in self.experiment.rows})
        rows = [other for other in rows if other.model == row.model]
        fitting = [r for r in rows if r.settings.get("retention_ratio") == row.settings.get("retention_ratio")]
        fitting = (
            fitting or [r for r in rows if "retention_ratio" not in r.settings] or (rows if len(rows) == 1 else [])
        )
        return fitting[0] if fitting else row  # all tokens have no counterpart at another ratio


def _ids(run: Run) -> set[str]:
    return {question.question_id for question in run.questions}
