"""The rows of the paper's tables, as `configs/experiments/*.yaml` describe them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from tango.errors import OptionError, TangoError, UnknownNameError
from tango.report.benchmarks import benchmark
from tango.report.paper import published
from tango.report.results import Json

_OF_A_ROW = {"name", "model", "section", "paper_row"}
_FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: the settings of a run that differ from the method's defaults, and the numbers of the paper's row."""

    name: str
    model: str  # by the paper's name
    section: str | None
    settings: Json  # what `MethodConfig.from_settings` takes
    published: Mapping[str, float]  # in percent, by column; empty for a row that the paper does not have


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table of the paper."""

    table: int
    title: str
    columns: tuple[str, ...]  # benchmarks, "benchmark/group", "average" and "performance"
    average_over: tuple[str, ...]  # benchmarks that the average and the performance are of
    models: Mapping[str, Json]  # by the paper's name or a user's
    rows: tuple[Row, ...]

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

    def num_frames_of(self, model: str) -> int | None:
        """The number of frames that this model is to be run with; None: any number."""
        names = self.names_of(model)
        return next((about.get("num_frames") for title, about in self.models.items() if title.lower() in names), None)

    def for_model(self, model: str) -> Experiment:
        """The rows of one of the paper's models; for any other model all rows, without repetitions, with that model."""
        names = self.names_of(model)
        rows, title = [row for row in self.rows if row.model.lower() in names], self.title
        if not rows:
            instead = next((about for title, about in self.models.items() if title.lower() in names), {})
            unique: dict[str, Row] = {}
            for row in self.rows:
                if row.settings["method"] in instead.get("without", ()):
                    continue
                settings = {name: instead.get("settings", {}).get(name, value) for name, value in row.settings.items()}
                unique.setdefault(repr(sorted(settings.items())), replace(row, model=model, settings=settings))
            rows = list(unique.values())
            title += f"; run with {model}"
        return replace(self, rows=tuple(rows), title=title)

    def on(self, benchmarks: Sequence[str]) -> Experiment:
        """The same rows on other benchmarks, or on groups of theirs ("benchmark/group")."""
        whole = [name for name in benchmarks if "/" not in name] or [name.partition("/")[0] for name in benchmarks]
        columns = [*benchmarks, *(["average"] if len(whole) > 1 else []), "performance"]
        return replace(self, columns=tuple(columns), average_over=tuple(dict.fromkeys(whole)))

    def only(self, *, names: Sequence[str] = (), ratios: Sequence[float] = ()) -> Experiment:
        """The rows with these names and retention ratios; rows that keep all tokens have no ratio and stay.

        Raises:
            UnknownNameError, OptionError: no row has this name or ratio.
        """
        for name in names:
            if name not in (known := {row.name for row in self.rows}):
                raise UnknownNameError(f"row of table {self.table}", name, known)
        known_ratios = sorted(
            {row.settings["retention_ratio"] for row in self.rows if "retention_ratio" in row.settings}
        )
        for ratio in ratios:
            if ratio not in known_ratios:
                raise OptionError(f"table {self.table} has no rows at ratio {ratio:g}; its ratios are {known_ratios}")
        rows = [row for row in self.rows if not names or row.name in names]
        rows = [row for row in rows if not ratios or row.settings.get("retention_ratio") in (None, *ratios)]
        return replace(self, rows=tuple(rows))


def read_experiment(folder: Path, table: int) -> Experiment:
    """Read table `table` as `folder` describes it.

    Raises:
        TangoError: the file is missing or malformed.
    """
    path = folder / f"table{table}.yaml"
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [_row(path, number, row, table) for number, row in enumerate(described["rows"], start=1)]
        experiment = Experiment(
            table=table,
            title=described["title"],
            columns=tuple(described["columns"]),
            average_over=tuple(described["average_over"]),
            models=described["models"],
            rows=tuple(rows),
        )
    except FileNotFoundError:
        raise TangoError(
            f"{path} does not exist; leave --experiments out for Tango's own, or name a folder that has this file"
        ) from None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TangoError(f"cannot read {path}: {type(error).__name__} {' '.join(str(error).split())}") from error
    if unknown := [name for name in experiment.benchmarks if benchmark(name).name != name]:
        raise TangoError(f"{path}: benchmarks go by the paper's names, got {', '.join(unknown)}")
    return experiment


def _row(path: Path, number: int, row: Json, table: int) -> Row:
    rows = published(table)
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
    )


def run_line(row: Row) -> str:
    """A row as arguments of VLMEvalKit's `run.py`: the method, its ratio (-: none), and flags for the rest."""
    flags = [f"{name}={value}" for name, value in row.settings.items() if name not in ("method", "retention_ratio")]
    flags = [part for flag in flags for part in ("--option", flag)]
    return shlex.join([str(row.settings["method"]), str(row.settings.get("retention_ratio", "-")), *flags])
