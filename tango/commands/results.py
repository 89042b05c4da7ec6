"""What `tango runs`, `tango table`, `tango figure` and `tango experiments` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tango.errors import TangoError
from tango.evaluation import MethodConfig
from tango.evaluation.config import label_of
from tango.files import configs_folder
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


def add_experiments_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the rows of the tables are described."""
    folder = configs_folder() / "experiments"
    parser.add_argument("--experiments", type=Path, default=folder, metavar="DIR", help="folder of table<n>.yaml")


def read(args: argparse.Namespace) -> Results:
    """Read the results that `--results` names, each run with its whole configuration.

    Options that a method did not have yet when a run was recorded get their defaults. A configuration that cannot be
    built any more stays as it was recorded, so it is found in no row.
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
        return MethodConfig(**recorded).to_dict()
    except (TangoError, TypeError, ValueError):
        return recorded


def resolve(settings: Json) -> Json:
    """All fields of the configuration that a row's settings describe."""
    return MethodConfig.from_settings(settings).to_record()


def label(method: Json) -> str:
    """A configuration's name without its retention ratio."""
    return label_of(_complete(method), ratio=False)
