"""`tango leaderboard`: makes a result file of a run, checks such files, and builds the page of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tango.errors import OptionError, TangoError
from tango.files import write_bytes, write_json
from tango.report.leaderboard import check_files, read_folder
from tango.report.leaderboard_page import page
from tango.report.leaderboard_paper import paper_entries

FOLDER = Path("results/leaderboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango leaderboard add`, `check` and `build`."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_arguments(_command(what, "add", "make a result file of each recorded run", _add))
    check = _command(what, "check", "say what is wrong with result files; exit code 2 if anything is", _check)
    check.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result files, see docs/leaderboard.md")
    build = _command(what, "build", "write the page", _build)
    build.add_argument("--results", type=Path, default=FOLDER, metavar="DIR", help=f"folder of result files ({FOLDER})")
    build.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page, e.g. site/index.html")
    build.add_argument("--no-paper", action="store_true", help="leave out the numbers that the paper prints")


def _command(
    what: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:  # fmt: skip
    parser = what.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    parser.set_defaults(act=run)
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders or files of records, as `tango runs --results`")
    add("--who", required=True, metavar="NAME", help="who ran it")
    add("--link", metavar="URL", help="where the records can be read (nowhere)")
    add("--elsewhere", action="store_true", help="the answers come from other code than Tango's")
    add("--output", type=Path, default=FOLDER, metavar="DIR", help=f"where the files go ({FOLDER})")
    add("--seed", type=int, default=0, help="seed of the draws behind the confidence intervals (0)")


def run(args: argparse.Namespace) -> int:
    """Do what the second word says."""
    return args.act(args)


def _add(args: argparse.Namespace) -> int:
    """Write one file for each run. Nothing is written unless all can be made."""
    from tango.commands.results import label, warn_of_failures
    from tango.report.leaderboard_runs import entry_of_run, file_name
    from tango.report.readers import read_results
    from tango.report.results import choose

    if args.seed < 0:
        raise OptionError(f"--seed must be a whole number from 0, got {args.seed}")
    results = read_results(args.runs)
    runs, notes = choose(results.runs)
    for note in (*results.notes, *notes):
        print(f"tango: note: {note}", file=sys.stderr)
    if not runs:
        raise TangoError(f"no finished run in {', '.join(map(str, args.runs))}; the notes above say what is missing")
    warn_of_failures(runs)
    about = {"who": args.who, "link": args.link, "elsewhere": args.elsewhere, "seed": args.seed}
    for entry in [entry_of_run(run, label, **about) for run in runs]:
        path = args.output / file_name(entry)
        write_json(path, entry)
        print(path)
    return 0


def _check(args: argparse.Namespace) -> int:
    """Print one line for each mistake, or how many files are good."""
    checked = check_files(args.files)
    for mistake in checked.mistakes:
        print(f"tango: error: {mistake}", file=sys.stderr)
    if checked.mistakes:
        return 2
    print(f"{len(checked.entries)} files without a mistake" if len(checked.entries) > 1 else "no mistake")
    return 0


def _build(args: argparse.Namespace) -> int:
    """Write the page in one step."""
    paper = [] if args.no_paper else list(paper_entries())
    entries = [*read_folder(args.results), *paper]
    write_bytes(args.output, page(entries).encode())
    print(args.output)
    return 0
