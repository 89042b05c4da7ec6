"""`tango table`: fills tables, the paper's and others, with recorded results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tango.commands.results import (
    add_experiments_arguments,
    add_results_arguments,
    experiment_from,
    read,
    resolve,
    warn_of_failures,
)
from tango.errors import OptionError, TangoError
from tango.files import write_bytes
from tango.report.experiments import available_tables
from tango.report.render import RENDERERS
from tango.report.tables import build

_ENDINGS = {"markdown": "md", "csv": "csv", "latex": "tex"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango table`."""
    add = parser.add_argument
    add("table", nargs="?", help="number of a table of the paper, or name of another, such as same_signal")
    add("--all", action="store_true", help="all of them; --output is then a folder")
    add_results_arguments(parser)
    add(
        "--model", metavar="NAME", help="fill the rows with results of this model, e.g. tango-mini (the paper's models)"
    )
    add(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        help="columns in place of the paper's; NAME/GROUP is a group of a benchmark",
    )
    add(
        "--against",
        metavar="ROW",
        help="compare every row with the row of this name at the same ratio, question by question (all tokens)",
    )
    add("--format", choices=sorted(RENDERERS), default="markdown", help="(markdown)")
    add("--output", type=Path, metavar="FILE", help="write there, in one step (standard output)")
    add_experiments_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print or write the tables."""
    if args.all == (args.table is not None):
        raise OptionError(f"name one table ({', '.join(available_tables(args.experiments))}) or give --all")
    if args.output is not None and args.output.exists() and args.output.is_dir() != args.all:
        expected = "a folder, for --all" if args.all else "a file"
        raise TangoError(f"--output must be {expected}, which {args.output} is not")
    names = available_tables(args.experiments) if args.all else [args.table]
    experiments = [experiment_from(args, name) for name in names]
    results = read(args)
    warn_of_failures(results.runs)
    texts = {}
    for experiment in experiments:
        if args.benchmarks:
            experiment = experiment.on(args.benchmarks)
        table = build(experiment, results, resolve, against=args.against, seed=args.seed)
        if not any(cell.ours for row in table.rows for cell in row.cells.values()):
            print(f"tango: note: no result fits a row of {experiment.heading}", file=sys.stderr)
        texts[experiment.table] = RENDERERS[args.format](table)
    if args.output is None:
        print("\n".join(texts.values()), end="")
        return 0
    for name, text in texts.items():
        stem = f"table{name}" if name.isdecimal() else name
        path = args.output / f"{stem}.{_ENDINGS[args.format]}" if args.all else args.output
        write_bytes(path, text.encode())
        print(path)
    return 0
