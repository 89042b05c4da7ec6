"""Reads recorded results: files of records, and folders with such files anywhere below them.

The integrations of both toolkits and `tango mini evaluate` write records, in the form that `tango.report.records`
describes. In a folder, files of records are called `*records.jsonl`, or have the file of their run beside them; a file
that is given by its path may have any name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from tango.errors import TangoError
from tango.report.records import Found, read_records, run_file
from tango.report.results import Results


def read_results(paths: Iterable[Path]) -> Results:
    """Read folders, with everything below them, and files of records.

    Raises:
        TangoError: a path does not exist or holds no results, or a file of results cannot be read.

    Example:
        >>> from tango.report import write_records
        >>> record = {"benchmark": "Video-MME", "question_id": "001-1", "video_id": None, "correct": True}
        >>> write_records(Path("logs/records.jsonl"), {"model": "mine", "method": {"method": "none"}}, [record])
        >>> read_results([Path("logs")]).runs[0].benchmark.name
        'Video-MME'
    """
    found = Found([], [])
    for path in paths:
        if not path.exists():
            raise TangoError(f"no results: {path} does not exist")
        runs, notes = read_records(path) if path.is_file() else read_folder(path)
        if not runs and not notes:
            raise TangoError(
                f"no results in {path}: expected files called *records.jsonl, which Tango's models in VLMEvalKit and "
                "lmms-eval leave, or what `tango mini evaluate --output` writes; name the folder that a run had as its "
                "output"
            )
        found.runs.extend(runs)
        found.notes.extend(notes)
    return Results(tuple(found.runs), tuple(found.notes))


def read_folder(folder: Path) -> Found:
    """Read all results in a folder and below it.

    Raises:
        TangoError: a file of results cannot be read.
    """
    found = Found([], [])
    left_out = set()
    for command, results in without_records(folder):
        left_out.add(results)
        found.notes.append(
            f"{results} is left out: it has no records, being of a release that wrote none, or none could be made; "
            f"`python -m {command} {folder}`, with the toolkits installed, adds them beside it or says why it cannot"
        )
    for path in sorted(folder.rglob("*.jsonl")):
        if path.name.endswith("records.jsonl") or run_file(path).is_file():
            found.runs.extend((read := read_records(path)).runs)
            found.notes.extend(read.notes)
    for started in sorted(folder.rglob("tango_args.json")):
        if started.parent not in left_out and not (started.parent / "records.jsonl").is_file():
            found.notes.append(f"{started.parent} is unfinished: it has no records.jsonl")
    for journals in sorted(path for path in folder.rglob("journals") if path.is_dir()):
        if not any(journals.parent.glob("*_results.json")):
            found.notes.append(f"{journals.parent} is unfinished: lmms-eval has not written its results there")
    for results in sorted(folder.rglob("*_results.json")):
        if results not in left_out and not _records_of(results).is_file():
            found.notes.append(f"{results} has no records, which need one of Tango's models and --log_samples")
    return found


def without_records(folder: Path) -> Iterator[tuple[str, Path]]:
    """Find results below a folder that have no records yet, each with the module that can make them.

    Example:
        >>> for module, results in without_records(Path(".")):
        ...     print(f"{results}: python -m {module} .")
    """
    for summary in sorted(folder.rglob("tango_summary.json")):
        if not (summary.parent / "records.jsonl").is_file():
            yield "tango_vlmeval.records", summary.parent
    for parent in sorted({path.parent for path in folder.rglob("*_efficiency.json")}):
        for results, _ in with_method(parent):
            if not _records_of(results).is_file():
                yield "tango_lmms_eval.records", results


def with_method(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Pair lmms-eval's results in a folder, those that have samples, with the efficiency files that name the method.

    An efficiency file is written moments after the time in the name of its results. It is thus the first one that is
    not older than these results, and it is older than the next results.

    Example:
        >>> [results.name for results, efficiency in with_method(Path("."))]
        []
    """
    efficiency = sorted(folder.glob("*_efficiency.json"))
    times = [path.name.removesuffix("_results.json") for path in sorted(folder.glob("*_results.json"))]
    for time, following in pairwise([*times, "~"]):  # "~" sorts after all digits
        named = (path for path in efficiency if time <= path.name.removesuffix("_efficiency.json") < following)
        if (path := next(named, None)) is not None and any(folder.glob(f"{time}_samples_*.jsonl")):
            yield folder / f"{time}_results.json", path


def _records_of(results: Path) -> Path:
    return results.with_name(f"{results.name.removesuffix('_results.json')}_records.jsonl")
