"""`tango experiments`: lists the rows of tables, the paper's and others, and how to run them."""

from __future__ import annotations

import argparse

from tango.commands.results import add_experiments_arguments, experiment_from, resolve
from tango.report.experiments import run_line
from tango.report.text import align


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango experiments`."""
    parser.add_argument("table", help="number of a table of the paper, or name of another, such as same_signal")
    parser.add_argument(
        "--model", metavar="NAME", help="rows of this model; all rows for a model that is not in the paper"
    )
    parser.add_argument("--names", nargs="+", default=[], metavar="ROW", help="only rows of these names")
    parser.add_argument("--ratios", nargs="+", type=float, default=[], metavar="R", help="only rows at these ratios")
    parser.add_argument(
        "--runs", action="store_true", help="one line per row: method, ratio (-: none) and flags of VLMEvalKit/run.py"
    )
    add_experiments_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the rows."""
    experiment = experiment_from(args, args.table).only(names=args.names, ratios=args.ratios)
    for row in experiment.rows:
        resolve(row.settings)  # mistakes in a file show before hours of running
    if args.runs:
        print("\n".join(map(run_line, experiment.rows)))
        return 0
    cells = [["model", "row", "settings", "paper's Perf."]]
    for row in experiment.rows:
        settings = " ".join(f"{name}={value}" for name, value in row.settings.items())
        cells.append([row.model, row.name, settings, str(row.published.get("performance", "-"))])
    print(align(cells, num_left=3))
    return 0
