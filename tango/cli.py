"""The `tango` command."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

import tango
from tango.errors import TangoError

# Name, module with `add_arguments` and `run`, summary. A module is imported only when its command is named.
_COMMANDS = (
    ("answer", "tango.commands.answer", "ask a question about a video"),
    ("inspect", "tango.commands.inspect", "show which tokens of a video would be kept"),
    ("compare", "tango.commands.compare", "show what several methods keep of one video"),
    ("profile", "tango.commands.profile", "time a model end to end, stage by stage, with several methods"),
    ("methods", "tango.commands.methods", "list the pruning methods"),
    ("flops", "tango.commands.flops", "count what pruning saves in the language model"),
    ("experiments", "tango.commands.experiments", "list the rows of the paper's tables, and how to run them"),
    ("table", "tango.commands.table", "fill the paper's tables with recorded results"),
    ("runs", "tango.commands.runs", "list recorded results: accuracy, tokens kept, difference to all tokens"),
    ("figure", "tango.commands.figure", "plot accuracy against visual tokens, from recorded results"),
    ("convert", "tango.commands.convert", "write an lmms-lab checkpoint in the layout of transformers"),
    ("quickstart", "tango.quickstart", "try everything on a tiny model and a generated clip"),
)
_MINI = (
    ("train", "tango.commands.mini.train", "train the small model from nothing"),
    ("clips", "tango.commands.mini.clips", "write the benchmark's clips and questions"),
    ("evaluate", "tango.commands.mini.evaluate", "ask the benchmark's questions, with or without pruning"),
    ("similarity", "tango.commands.mini.similarity", "measure how static the benchmark's clips are"),
)
_BENCHMARKS = (
    ("pruner", "tango.bench.pruner", "time the pruner alone, stage by stage"),
    ("methods", "tango.bench.methods", "time all methods on the same tokens"),
    ("reliability", "tango.bench.reliability.command", "try damaged files, kills, batches and hostile inputs"),
)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tango", description="Training-free video-token pruning for video LLMs.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tango-video {tango.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module, summary in _COMMANDS:
        _add(commands, name, module, summary, named=argv[:1] == [name])
    for group, about, members in (
        ("mini", "the small trained model and its benchmark", _MINI),
        ("bench", "measure speed and reliability", _BENCHMARKS),
    ):
        added = commands.add_parser(group, help=about).add_subparsers(required=True, metavar="WHAT")
        for name, module, summary in members:
            _add(added, name, module, summary, named=argv[:2] == [group, name])
    return parser


def _add(
    group: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: str, summary: str, *, named: bool
) -> None:
    parser = group.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False)
    if named:
        command = import_module(module)
        command.add_arguments(parser)
        parser.set_defaults(run=command.run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 2 a mistake of the user's (one line on stderr), 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parser(argv).parse_args(argv)
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
