"""The rows of tables, the paper's and others, as `configs/experiments/*.yaml` describe them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from tango.errors import OptionError, TangoError, UnknownNameError
from tango.report.benchmarks import benchmark, refuse_two_sets
from tango.report.paper import TABLES, published
from tango.report.results import Json

_OF_A_ROW = {"name", "model", "section", "paper_row", "authors"}
_FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: the settings of a run that differ from the method's defaults, and the numbers of the paper's row."""

    name: str
    model: str  # by the paper's name
    section: str | None
    settings: Json  # what `MethodConfig.from_settings` takes
    published: Mapping[str, float]  # in percent, by column; empty for a row that the paper does not have
    authors: Mapping[str, float]  # in percent, by column: what the method's own paper reports


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table: one of the paper's, which go by their numbers, or another."""

    table: str
    title: str
    columns: tuple[str, ...]  # benchmarks, "benchmark/group", "average" and "performance"
    average_over: tuple[str, ...]  # benchmarks that the average and the performance are of
    models: Mapping[str, Json]  # by the paper's name or a user's
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    is_chosen: bool = False  # whether the user named the benchmarks
    is_foreign: bool = False  # whether the rows are run with a model for which they were not written

    @property
    def heading(self) -> str:
        """What the table is called."""
        return f"Table {self.table}" if self.table.isdecimal() else self.table

    @property
    def all_tokens(self) -> str | None:
        """The name of the row that keeps all tokens; None if the table has none."""
        return next((row.name for row in self.rows if row.settings["method"] == "none"), None)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """All benchmarks that a run must cover."""
        of_columns = [column.partition("/")[0] for column in self.columns if column not in ("average", "performance")]
        return tuple(dict.fromkeys([*of_columns, *self.average_over]))

    @property
    def papers_models(self) -> list[str]:
        """The models that the rows name."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def names_of(self, model: str) -> set[str]:
        """All names, in lower case, that results may have for this model."""
        for title, about in self.models.items():
            names = {title.lower(), *(name.lower() for name in about.get("checkpoints", ()))}
            if model.lower() in names:
                return names
        return {model.lower()}

    def about(self, model: str) -> Json:
        """What the file says of a model; nothing if it does not name it."""
        names = self.names_of(model)
        return next((about for title, about in self.models.items() if title.lower() in names), {})

    def num_frames_of(self, model: str) -> int | None:
        """The number of frames that this model is to be run with; None: any number."""
        return self.about(model).get("num_frames")

    def with_settings(self, change: Callable[[Row], Json], said: Sequence[str] = ()) -> Experiment:
        """The rows with other settings, and a title that says so."""
        rows = tuple(replace(row, settings=change(row)) for row in self.rows)
        note = f"{' and '.join(said)}: the paper's numbers, and those of the methods' own papers, are not"
        notes = (*self.notes, *([note] if said and any(row.published or row.authors for row in rows) else []))
        return replace(self, rows=rows, title="; ".join((self.title, *said)), notes=notes)

    def for_model(self, model: str) -> Experiment:
        """The rows of one of the paper's models; for any other model all rows, without repetitions, with that model."""
        names = self.names_of(model)
        rows = [row for row in self.rows if row.model.lower() in names]
        if not rows:
            instead = self.about(model)
            unique: dict[str, Row] = {}
            for row in self.rows:
                if row.settings["method"] in instead.get("without", ()):
                    continue
                settings = {name: instead.get("settings", {}).get(name, value) for name, value in row.settings.items()}
                unique.setdefault(repr(sorted(settings.items())), replace(row, model=model, settings=settings))
            title = f"{self.title}; run with {model}"
            return replace(self, rows=tuple(unique.values()), title=title, is_foreign=True)
        return replace(self, rows=tuple(rows))

    def on(self, benchmarks: Sequence[str]) -> Experiment:
        """The same rows on other benchmarks, or on groups of theirs ("benchmark/group").

        Raises:
            TangoError: two of them are sets of one benchmark.
        """
        refuse_two_sets(name.partition("/")[0] for name in benchmarks)
        whole = [name for name in benchmarks if "/" not in name] or [name.partition("/")[0] for name in benchmarks]
        columns = [*benchmarks, *(["average"] if len(whole) > 1 else []), "performance"]
        return replace(self, columns=tuple(columns), average_over=tuple(dict.fromkeys(whole)), is_chosen=True)

    def only(self, *, names: Sequence[str] = (), ratios: Sequence[float] = ()) -> Experiment:
        """The rows with these names and retention ratios; rows that keep all tokens have no ratio and stay.

        Raises:
            UnknownNameError, OptionError: no row has this name or ratio.
        """
        for name in names:
            if name not in (known := {row.name for row in self.rows}):
                raise UnknownNameError(f"row of {self.heading}", name, known)
        known_ratios = sorted(
            {row.settings["retention_ratio"] for row in self.rows if "retention_ratio" in row.settings}
        )
        for ratio in ratios:
            if ratio not in known_ratios:
                raise OptionError(f"{self.heading} has no rows at ratio {ratio:g}; its ratios are {known_ratios}")
        rows = [row for row in self.rows if not names or row.name in names]
        rows = [row for row in rows if not ratios or row.settings.get("retention_ratio") in (None, *ratios)]
        return replace(self, rows=tuple(rows))


def available_tables(folder: Path) -> list[str]:
    """The tables that `folder` describes: the paper's by their numbers, then the others by their names."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    numbers = [str(table) for table in TABLES if f"table{table}" in names]
    return [*numbers, *(name for name in names if name not in {f"table{table}" for table in TABLES})]


def read_experiment(folder: Path, table: int | str) -> Experiment:
    """Read a table as `folder` describes it: in table<n>.yaml one of the paper's, in <name>.yaml another.

    Raises:
        TangoError: the file is missing or malformed.
        UnknownNameError: the folder has other tables, not this one.
    """
    is_papers = str(table) in map(str, TABLES)
    path = folder / (f"table{table}.yaml" if is_papers else f"{table}.yaml")
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        own = int(table) if is_papers else None
        rows = [_row(path, number, row, own) for number, row in enumerate(described["rows"], start=1)]
        experiment = Experiment(
            table=str(table),
            title=described["title"],
            columns=tuple(described["columns"]),
            average_over=tuple(described["average_over"]),
            models=described["models"],
            rows=tuple(rows),
            notes=tuple(described.get("notes", ())),
        )
    except FileNotFoundError:
        if known := available_tables(folder):
            raise UnknownNameError("table", str(table), known) from None
        raise TangoError(
            f"{path} does not exist; leave --experiments out for Tango's own, or name a folder that has this file"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TangoError(f"cannot read {path}: {type(error).__name__} {' '.join(str(error).split())}") from error
    if unknown := [name for name in experiment.benchmarks if benchmark(name).name != name]:
        raise TangoError(f"{path}: benchmarks go by the paper's names, got {', '.join(unknown)}")
    if stray := [name for row in experiment.rows for name in row.authors if name not in experiment.columns]:
        raise TangoError(f"{path}: authors' numbers are for columns of the table, got {', '.join(stray)}")
    return experiment


def _row(path: Path, number: int, row: Json, table: int | None) -> Row:
    rows = [] if table is None else published(table)
    answers_to = row.get("paper_row")
    if answers_to is not None and not 1 <= answers_to <= len(rows):
        raise TangoError(f"{path}: row {number} answers to row {answers_to} of the paper's {len(rows)}")
    settings = {name: value for name, value in row.items() if name not in _OF_A_ROW}
    default = _FULL if row["method"] == "none" else row["method"]
    return Row(
        name=str(row.get("name", default)),
        model=row["model"],
        section=row.get("section"),
        settings=settings,
        published={} if answers_to is None else rows[answers_to - 1].percent,
        authors=row.get("authors", {}),
    )


def run_line(row: Row) -> str:
    """A row as arguments of VLMEvalKit's `run.py`: the method, its ratio (-: none), and flags for the rest."""
    flags = [f"{name}={value}" for name, value in row.settings.items() if name not in ("method", "retention_ratio")]
    flags = [part for flag in flags for part in ("--option", flag)]
    return shlex.join([str(row.settings["method"]), str(row.settings.get("retention_ratio", "-")), *flags])
