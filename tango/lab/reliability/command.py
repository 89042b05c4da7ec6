"""`tango bench reliability`: run the scorecard and print its table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tango.errors import TangoError
from tango.evaluation.records import environment
from tango.files import write_bytes, write_json
from tango.lab.reliability.workers import Bench, Row
from tango.report.text import align, markdown

if TYPE_CHECKING:
    from tango.lab.bench.common import Record

_HERE = "tango.lab.reliability"
# Name -> module, function and subject.
CHECKS = {
    "R1": (f"{_HERE}.files", "check_damaged", "damaged files: no hang, no signal, typed errors, no silent error"),
    "R2": (f"{_HERE}.files", "check_exact", "sound files: exact frames"),
    "R3": (f"{_HERE}.kills", "check_kills", "evaluations that are killed and resumed"),
    "R4": (f"{_HERE}.kills", "check_workers", "another number of processes after a kill, and a full disk"),
    "R5": (f"{_HERE}.journal_key", "check_key", "what an answer depends on is part of the journal's key"),
    "R6": (f"{_HERE}.answers", "check_determinism", "the same input gives the same tokens"),
    "R7": (f"{_HERE}.answers", "check_batches", "batches and odd inputs: as alone, or a typed error"),
    "R9": (f"{_HERE}.probes", "check_probes", "hostile inputs are refused; nothing is contacted, memory is bounded"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the scorecard."""
    add = parser.add_argument
    add("--only", metavar="NAMES", help=f"comma-separated, of {', '.join(CHECKS)} (all)")
    add("--full", action="store_true", help="five times the damaged files, 50 kills of 300 questions; takes an hour")
    add("--seed", type=int, default=0, help="of the damage and of the moments of the kills (0)")
    add("--processes", type=int, default=2, help="processes that read files at the same time (2)")
    add("--folder", type=Path, help="where files are made; they are left there (a temporary one)")
    add("--corpus", action="store_true", help="only make the sound files, in --folder, and list them")
    add("--output", type=Path, metavar="FILE.json", help="write the table there and, as Markdown, beside it")


def run(args: argparse.Namespace) -> int:
    """Run the checks and print their table; exit status 1 if a target was missed."""
    names = [name.strip() for name in args.only.split(",")] if args.only else list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        raise TangoError(f"no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    if args.processes < 1:
        raise TangoError(f"--processes must be at least 1, got {args.processes}")
    if args.corpus and args.folder is None:
        raise TangoError("--corpus needs --folder, where the files go")
    with tempfile.TemporaryDirectory(prefix="tango-reliability-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder=folder.resolve(), seed=args.seed, full=args.full, processes=args.processes)
        if args.corpus:
            return _list_corpus(bench)
        report = measure(bench, names, args.output)
    print(format_report(report))
    return 0 if report["passed"] else 1


def measure(bench: Bench, names: list[str], output: Path | None = None) -> Record:
    """Run the named checks; `output` is written after each of them, so that a run ended early leaves what it has."""
    report: Record = {
        "benchmark": "reliability",
        "environment": environment(),
        "config": {"seed": bench.seed, "full": bench.full, "checks": names},
        "complete": False,
        "passed": False,
        "seconds": {},
        "rows": [],
    }
    for name in names:
        start = time.perf_counter()
        print(f"{name}: {CHECKS[name][2]}", file=sys.stderr)
        report["rows"] += [row.to_dict() for row in _rows(name, bench)]
        report["seconds"][name] = round(time.perf_counter() - start, 1)
        report["complete"] = name == names[-1]
        report["passed"] = report["complete"] and all(row["passed"] for row in report["rows"])
        if output is not None:
            write_json(output, report)
            write_bytes(output.with_suffix(".md"), (format_markdown(report) + "\n").encode())
    return report


def _rows(name: str, bench: Bench) -> Iterator[Row]:
    """The rows of a check; if it raises, a row with a missed target."""
    try:
        yield from _check(name)(bench)
    except Exception as error:
        broken = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Row(check=name, what=CHECKS[name][2], tried=0, target="runs to its end", got=broken[:200], passed=False)


def _check(name: str) -> Callable[[Bench], Iterator[Row]]:
    module, function, _ = CHECKS[name]
    return getattr(import_module(module), function)


def _list_corpus(bench: Bench) -> int:
    from tango.lab.reliability.files import write_corpus

    made, missing = write_corpus(bench)
    for name, path in made.items():
        print(f"{name}\t{path.stat().st_size}")
    print(
        f"{len(made)} made; not made, for this build of FFmpeg cannot: {', '.join(missing) or 'none'}", file=sys.stderr
    )
    return 0


_HEADER = ("check", "what", "target", "got", "met", "tried")


def _cells(row: Record) -> tuple[str, ...]:
    return row["check"], row["what"], row["target"], row["got"], "yes" if row["passed"] else "NO", str(row["tried"])


def _title(report: Record) -> str:
    where, missed = report["environment"], sum(not row["passed"] for row in report["rows"])
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    state = "" if report["complete"] else "; ENDED EARLY"
    full = ", full" if report["config"]["full"] else ""
    return (
        f"Reliability, {where['date'][:10]}, seed {report['config']['seed']}{full}: {len(report['rows']) - missed} of "
        f"{len(report['rows'])} targets met{state}. {where['cpu']}, {where['num_cpus']} CPUs, {where['platform']}; "
        f"{versions}; {sum(report['seconds'].values()):.0f} s"
    )


def _faults(report: Record) -> list[str]:
    return [f"{row['check']} {row['what']}: {fault}" for row in report["rows"] for fault in row["faults"]]


def format_report(report: Record) -> str:
    """Title, table and faults."""
    table = align([_HEADER, *map(_cells, report["rows"])], num_left=5)
    return "\n".join([_title(report), table, *_faults(report)])


def format_markdown(report: Record) -> str:
    """Title, table and faults, in Markdown."""
    faults = [f"- {fault}" for fault in _faults(report)]
    return "\n\n".join(
        [_title(report), markdown([_HEADER, *map(_cells, report["rows"])]), *(["\n".join(faults)] * bool(faults))]
    )
