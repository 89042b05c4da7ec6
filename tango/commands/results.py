"""What `tango runs`, `tango table`, `tango figure` and `tango experiments` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tango.containers import Signal
from tango.errors import TangoError
from tango.evaluation import MethodConfig
from tango.evaluation.config import label_of
from tango.files import configs_folder
from tango.methods import Pruner
from tango.methods.plan import method_kind
from tango.report.experiments import Experiment, Row, read_experiment
from tango.report.readers import read_results
from tango.report.results import Json, Results, Run


def add_results_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where results are, and how their intervals are drawn."""
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, metavar="PATH",
        help="output folders of VLMEvalKit and lmms-eval, or files of records; see docs/file-formats.md",
    )  # fmt: skip
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draws behind the confidence intervals (0)")


def seed(text: str) -> int:
    """Argument type: a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text[:50]!r}")
    return int(text)


def add_experiments_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the rows of the tables are described, and what is changed in all of them."""
    folder = configs_folder() / "experiments"
    add = parser.add_argument
    add("--experiments", type=Path, default=folder, metavar="DIR", help="folder of table<n>.yaml and other tables")
    exact = "the same rows, each pre-LLM method keeping exactly its ratio of the tokens"
    add("--exact-budget", action="store_true", help=exact)
    add("--saliency", metavar="NAME", help="the same rows, all methods that read saliency reading this one")


def experiment_from(args: argparse.Namespace, table: str) -> Experiment:
    """The rows of a table as the arguments ask for them, with the presets of their models.

    Raises:
        TangoError: there is no such table, or its description is malformed.
    """
    experiment = read_experiment(args.experiments, table)
    if args.model is not None:
        experiment = experiment.for_model(args.model)
    said = ["with exact budgets"] if args.exact_budget else []
    said += [] if args.saliency is None else [f"with saliency {args.saliency} for all methods"]
    change = partial(_settings, experiment, exact_budget=args.exact_budget, saliency=args.saliency)
    experiment = experiment.with_settings(change, said)
    return replace(experiment, notes=(*_signals(experiment.rows), *experiment.notes))


def _signals(rows: Iterable[Row]) -> list[str]:
    """A note on what the rows' methods read, how they number positions, and the presets by which they run."""
    found: dict[str, list[str]] = {}
    for row in rows:
        plan, preset = MethodConfig.from_settings(row.settings).plan, row.settings.get("preset")
        facts = [f"saliency {plan.saliency}"] if Signal.SALIENCY in plan.pruner.wants else []
        facts += [] if plan.positions is None else [f"positions {plan.positions}"]
        facts += [] if preset is None else [f"preset {preset}"]
        for fact in facts:
            if row.name not in (names := found.setdefault(fact, [])):
                names.append(row.name)
    parts = "; ".join(f"{fact}: {', '.join(found[fact])}" for fact in sorted(found))
    return [f"methods run with {parts}; `tango methods` says what a preset is"] if found else []


def _settings(experiment: Experiment, row: Row, *, exact_budget: bool, saliency: str | None) -> Json:
    """A row's settings, with the preset of its model, and with what is changed in all rows where it means something."""
    settings, about = dict(row.settings), experiment.about(row.model)
    kind = method_kind(settings["method"])
    if (preset := about.get("preset", "")) in kind.presets:
        settings.setdefault("preset", preset)
        for name in about.get("settings", {}).keys() & kind.presets[preset].keys():
            settings.setdefault(name, about["settings"][name])
    if not settings.keys() - {"method"}:  # all tokens
        return settings
    if exact_budget and issubclass(kind, Pruner):
        settings["exact_budget"] = True
    if saliency is not None and Signal.SALIENCY in MethodConfig.from_settings(settings).plan.pruner.wants:
        settings["saliency"] = saliency
    return settings


def read(args: argparse.Namespace) -> Results:
    """Read the results that `--results` names, each run with its whole configuration.

    Options that a method did not have yet when a run was recorded get their defaults; positions that are recorded as
    null are the model's own, whatever the method's are by now. A configuration that cannot be built any more stays as
    it was recorded, so it is found in no row.
    """
    results = read_results(args.results)
    return replace(results, runs=tuple(replace(run, method=_complete(run.method)) for run in results.runs))


def warn_of_failures(runs: Iterable[Run]) -> None:
    """Say on stderr in which runs questions failed."""
    for run in runs:
        if run.failures is not None:
            print(f"tango: warning: {run.failures}", file=sys.stderr)


def _complete(recorded: Json) -> Json:
    if any("weights" in (recorded.get(part) or {}) for part in ("options", "layer_options")):
        return recorded  # a learned method: its file may hold other weights by now
    try:
        positions = {"positions": recorded["positions"]} if "positions" in recorded else {}
        return {**MethodConfig(**recorded).to_dict(), **positions}
    except (TangoError, TypeError, ValueError):
        return recorded


def resolve(settings: Json) -> Json:
    """All fields of the configuration that a row's settings describe."""
    return MethodConfig.from_settings(settings).to_record()


def label(method: Json) -> str:
    """A configuration's name without its retention ratio."""
    return label_of(_complete(method), ratio=False)
