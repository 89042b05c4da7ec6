"""`tango runs`: lists every recorded run with its results."""

from __future__ import annotations

import argparse
import json
import sys

from tango.commands.results import add_results_arguments, label, read, warn_of_failures
from tango.report.overview import lines, markdown
from tango.report.results import choose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango runs`."""
    add_results_arguments(parser)
    parser.add_argument(
        "--against", metavar="METHOD",
        help="compare with the run of this name in the column `method`, at the same ratio (with all tokens)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with the accuracy of each group of questions")


def run(args: argparse.Namespace) -> int:
    """Print the runs as a table, or as JSON."""
    results = read(args)
    runs, notes = choose(results.runs)
    for note in (*results.notes, *notes):
        print(f"tango: note: {note}", file=sys.stderr)
    warn_of_failures(runs)
    found = lines(runs, label, against=args.against, seed=args.seed)
    print(json.dumps([line.to_dict() for line in found], indent=1) if args.json else markdown(found))
    return 0
