"""`tango figure`: plots accuracy against visual tokens, from recorded results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tango.commands.results import add_results_arguments, label, read, warn_of_failures
from tango.errors import OptionError, TangoError
from tango.files import write_bytes
from tango.report.curves import csv_text, points
from tango.report.plots import accuracy_curves
from tango.report.results import choose

_FORMS = ("png", "svg", "pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango figure`."""
    parser.add_argument("figure", choices=("accuracy",), help="accuracy: against the visual tokens that are left")
    add_results_arguments(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="plot results of this model, by the name in them (the only model there)"
    )
    parser.add_argument(
        "--benchmarks", nargs="+", default=[], metavar="NAME", help="benchmarks to average over (all there)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".png, .svg or .pdf; .csv beside it")


def run(args: argparse.Namespace) -> int:
    """Write the numbers as CSV, then the plot."""
    form = args.output.suffix.removeprefix(".").lower()
    if form not in _FORMS:
        raise OptionError(f"--output must end in .png, .svg or .pdf, got {args.output}")
    results = read(args)
    models = sorted({run.model for run in results.runs})
    if args.model is None and len(models) != 1:
        raise OptionError(f"results of several models: choose one with --model: {', '.join(models) or 'none is there'}")
    model = args.model or models[0]
    runs, notes = choose([run for run in results.runs if run.model == model])
    if not runs:
        raise TangoError(f"no results of {model}; there are those of {', '.join(models)}")
    series, left_out = points(runs, label, args.benchmarks, seed=args.seed)
    for note in (*results.notes, *notes, *left_out):
        print(f"tango: note: {note}", file=sys.stderr)
    warn_of_failures(runs)
    partial = " (partial runs)" if any(point.partial for point in series) else ""
    table = args.output.with_suffix(".csv")
    write_bytes(table, csv_text(series).encode())
    print(table)
    write_bytes(args.output, accuracy_curves(series, title=f"{model}{partial}", form=form))
    print(args.output)
    return 0
