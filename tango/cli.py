"""The `tango` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

import tango
from tango import quickstart
from tango.bench import methods as bench_methods
from tango.bench import pruner as bench_pruner
from tango.commands import answer, compare, convert, experiments, figure, flops, inspect, methods, mini, runs, table
from tango.errors import TangoError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tango", description="Training-free video-token pruning for video LLMs.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tango-video {tango.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module, summary in (
        ("answer", answer, "ask a question about a video"),
        ("inspect", inspect, "show which tokens of a video would be kept"),
        ("compare", compare, "show what several methods keep of one video"),
        ("methods", methods, "list the pruning methods"),
        ("flops", flops, "count what pruning saves in the language model"),
        ("experiments", experiments, "list the rows of the paper's tables, and how to run them"),
        ("table", table, "fill the paper's tables with recorded results"),
        ("runs", runs, "list recorded results: accuracy, tokens kept, difference to all tokens"),
        ("figure", figure, "plot accuracy against visual tokens, from recorded results"),
        ("convert", convert, "write an lmms-lab checkpoint in the layout of transformers"),
        ("quickstart", quickstart, "try everything on a tiny model and a generated clip"),
    ):
        _add(commands, name, summary, module.add_arguments, module.run)
    group = commands.add_parser("mini", help="the small trained model and its benchmark").add_subparsers(
        required=True, metavar="WHAT"
    )
    for name, summary, add_arguments, run in mini.COMMANDS:
        _add(group, name, summary, add_arguments, run)
    bench = commands.add_parser("bench", help="measure speed").add_subparsers(required=True, metavar="WHAT")
    _add(bench, "pruner", "time the pruner alone, stage by stage", bench_pruner.add_arguments, bench_pruner.run)
    summary = "time all methods on the same tokens"
    _add(bench, "methods", summary, bench_methods.add_arguments, bench_methods.run)
    return parser


def _add(
    group: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], int],
) -> None:
    parser = group.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
    add_arguments(parser)
    parser.set_defaults(run=run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 a mistake of the user's (one line on stderr), 130 interrupted."""
    args = _parser().parse_args(argv)
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"tango: note: {message}", file=sys.stderr)
    try:
        return args.run(args)
    except (TangoError, ValueError, OSError) as error:
        print(f"tango: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tango: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
