"""The `tango` command."""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, during which Ctrl-C may come
    import runpy

    runpy.run_module("tango", run_name="__main__", alter_sys=True)

import argparse
import errno
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import tango
from tango.errors import TangoError

# Name, module with `add_arguments` and `run`, summary. A module is imported only when its command is named.
_COMMANDS = (
    ("answer", "tango.commands.answer", "ask a question about a video"),
    ("inspect", "tango.commands.inspect", "show which tokens of a video would be kept"),
    ("compare", "tango.commands.compare", "show what several methods keep of one video"),
    ("signals", "tango.commands.signals", "measure attention, sinks, clusters and coverage on any videos"),
    ("calibrate", "tango.commands.calibrate", "suggest sinks, thresholds and budget for a model, from a few videos"),
    ("profile", "tango.commands.profile", "time a model end to end, stage by stage, with several methods"),
    ("methods", "tango.commands.methods", "list the pruning methods"),
    ("models", "tango.commands.models", "list the model families"),
    ("flops", "tango.commands.flops", "count what pruning saves in the language model"),
    ("experiments", "tango.commands.experiments", "list the rows of the paper's tables, and how to run them"),
    ("table", "tango.commands.table", "fill the paper's tables with recorded results"),
    ("runs", "tango.commands.runs", "list recorded results: accuracy, tokens kept, difference to all tokens"),
    ("figure", "tango.commands.figure", "plot accuracy against visual tokens, from recorded results"),
    ("leaderboard", "tango.commands.leaderboard", "collect recorded results, also other people's, on one page"),
    ("convert", "tango.commands.convert", "write an lmms-lab checkpoint in the layout of transformers"),
    ("doctor", "tango.commands.doctor", "check this installation: versions, readers, GPU, toolkits, a small answer"),
    ("quickstart", "tango.commands.quickstart", "try everything on a tiny model and a generated clip"),
)
_MINI = (
    ("train", "tango.commands.mini.train", "train the small model from nothing"),
    ("clips", "tango.commands.mini.clips", "write the benchmark's clips and questions"),
    ("evaluate", "tango.commands.mini.evaluate", "ask the benchmark's questions, with or without pruning"),
    ("similarity", "tango.commands.mini.similarity", "measure how static the benchmark's clips are"),
)
_SMALL = (
    ("train", "tango.commands.small.train", "train the projector between two pretrained models"),
    ("evaluate", "tango.commands.small.evaluate", "ask questions about real clips, with or without pruning"),
)
_BENCHMARKS = (
    ("pruner", "tango.lab.bench.pruner", "time the pruner alone, stage by stage"),
    ("methods", "tango.lab.bench.methods", "time all methods on the same tokens"),
    ("reliability", "tango.lab.reliability.command", "try damaged files, kills, batches and hostile inputs"),
)


def _imports() -> argparse.ArgumentParser:
    """The option that every command takes, before or after its name."""
    parser = argparse.ArgumentParser(prog="tango", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="PKG",
        help="first import this package, for the methods, models and saliency that it registers; repeatable",
    )  # fmt: skip
    return parser


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of everything else; only the command that `argv` names adds its own arguments."""
    parser = argparse.ArgumentParser(
        prog="tango",
        description="Training-free video-token pruning for video LLMs.",
        allow_abbrev=False,
        parents=[_imports()],
    )
    parser.add_argument("--version", action="version", version=f"tango-video {tango.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module, summary in _COMMANDS:
        _add(commands, name, module, summary, named=argv[:1] == [name])
    for group, about, members in (
        ("mini", "the small trained model and its benchmark", _MINI),
        ("small", "a small model of pretrained parts, and questions about real clips", _SMALL),
        ("bench", "measure speed and reliability", _BENCHMARKS),
    ):
        parents = [_imports()]
        added = commands.add_parser(group, help=about, parents=parents).add_subparsers(required=True, metavar="WHAT")
        for name, module, summary in members:
            _add(added, name, module, summary, named=argv[:2] == [group, name])
    return parser


def _add(
    group: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: str, summary: str, *, named: bool
) -> None:
    about = f"{summary[0].upper()}{summary[1:]}."
    parser = group.add_parser(name, help=summary, description=about, allow_abbrev=False, parents=[_imports()])
    if named:
        command = import_module(module)
        command.add_arguments(parser)
        parser.set_defaults(run=command.run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Exit codes: 0 done; 1 a defect of Tango, with its traceback, or a fault that `doctor` found; 2 a mistake of the
    user's, in one line on stderr; 130 interrupted (see `tango.processes`); 141 nobody reads the output any more.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # file names need not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            early, words = _imports().parse_known_args(argv)
            if early.imports:  # before any name of a method is read
                import_module("tango.extensions").import_packages(*early.imports)
            args = _parser(words).parse_args(argv)
            warnings.showwarning = lambda message, *_args, **_kwargs: print(f"tango: note: {message}", file=sys.stderr)
            return args.run(args)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # an error here is reported below; at exit Python would print a traceback
    except BrokenPipeError:
        _drop_output()
        return 141
    except Exception as error:
        if isinstance(error, OSError):
            _drop_output()
        if (reason := _mistake(error)) is None:
            sys.excepthook(type(error), error, error.__traceback__)  # after Ctrl-C, this ends the process
            owner = import_module("tango.extensions").owner(error)
            whose = "Tango" if owner is None else f"the package {owner}, or of Tango"
            reason = f"this is a defect of {whose}; please report it, with the lines above and `tango --version`"
            print(f"tango: {reason}", file=sys.stderr)
            return 1
        print(f"tango: error: {' '.join(reason.split())}", file=sys.stderr)
        return 2


def _mistake(error: Exception) -> str | None:
    """What to tell the user if an error is due to a mistake of theirs or to their machine; None: it is our defect.

    A ValueError is the user's mistake if one of Tango's own checks raised it. From a library, it means that we called
    the library wrongly.
    """
    if isinstance(error, TangoError):
        return str(error)
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error):
        return f"not enough memory: {error}"
    if isinstance(error, OSError):
        full = error.filename is None and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        return f"cannot write the output: {error}" if full else str(error)
    frames = [frame.f_code.co_filename for frame, _line in traceback.walk_tb(error.__traceback__)]
    ours = Path(tango.__file__).parent in Path(frames[-1]).parents
    return str(error) if isinstance(error, ValueError) and ours else None


def _drop_output() -> None:
    """Keep Python from trying again, at exit, to write what cannot be written."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
