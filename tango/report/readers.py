"""Readers of recorded results: folders of VLMEvalKit and of lmms-eval, and JSON lines.

    results = read_results([Path("VLMEvalKit/outputs"), Path("logs"), Path("mine.jsonl")])

Three things are read: folders of VLMEvalKit with Tango's models, folders of lmms-eval with Tango's models, and JSON
lines, one judged question each, in files called `*records.jsonl` (any name if the file itself is given); their fields
are those of `tango.report.records`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tango.errors import TangoError
from tango.report.benchmarks import benchmark
from tango.report.records import read_records
from tango.report.results import (
    Judged,
    Results,
    Run,
    checked_method,
    count_or_none,
    judged,
    number_or_none,
    read_json,
    read_json_lines,
    shown,
    unreadable,
)
from tango.report.xlsx import read_xlsx

_SUMMARY, _ARGUMENTS = "tango_summary.json", "tango_args.json"
# Columns of VLMEvalKit's tables of scores, by benchmark: those that name the clip, and the one that names the group.
_COLUMNS = {
    "Video-MME": (("video",), "duration"),
    "MVBench": (("prefix", "video"), "task_type"),
    "LongVideoBench": (("video",), "duration_group"),
    "MLVU": (("prefix", "video"), "task_type"),
}


class Found(NamedTuple):
    """Runs, and notes on what is missing."""

    runs: list[Run]
    notes: list[str]


def read_results(paths: Iterable[Path]) -> Results:
    """Read folders (with all below them) and files.

    Raises:
        TangoError: a path does not exist or holds no results, or a file of results cannot be read.
    """
    runs: list[Run] = []
    notes: list[str] = []
    for path in paths:
        if not path.exists():
            raise TangoError(f"no results: {path} does not exist")
        found, remarks = Found(read_records(path), []) if path.is_file() else read_folder(path)
        if not found and not remarks:
            raise TangoError(
                f"no results in {path}: expected folders with tango_summary.json (VLMEvalKit), files called "
                "*_results.json (lmms-eval) or *records.jsonl; name the folder that a run had as its output"
            )
        runs += found
        notes += remarks
    for run in runs:
        _check_once(run)
    return Results(tuple(runs), tuple(notes))


def read_folder(folder: Path) -> Found:
    """All results in a folder and below it.

    Raises:
        TangoError: a file of results cannot be read.
    """
    found = Found([], [])
    for marker in sorted({path.parent for name in (_SUMMARY, _ARGUMENTS) for path in folder.rglob(name)}):
        _add(found, read_vlmevalkit(marker))
    for marker in sorted({path.parent for path in folder.rglob("*_results.json")}):
        _add(found, read_lmms_eval(marker))
    for journals in sorted(path for path in folder.rglob("journals") if path.is_dir()):
        if not any(journals.parent.glob("*_results.json")):
            found.notes.append(f"{journals.parent} is unfinished: lmms-eval has not written its results there")
    for file in sorted(folder.rglob("*records.jsonl")):
        found.runs.extend(read_records(file))
    return found


def _add(found: Found, more: Found) -> None:
    found.runs.extend(more.runs)
    found.notes.extend(more.notes)


def read_vlmevalkit(folder: Path) -> Found:
    """What Tango's adapter to VLMEvalKit left for one model and method: `tango_summary.json` and tables of scores."""
    if not (folder / _SUMMARY).is_file():
        return Found([], [f"{folder} is unfinished: it has no {_SUMMARY}"])
    summary = read_json(folder / _SUMMARY)
    found = Found([], [])
    try:
        name, settings = summary["model"], summary["settings"]
        model = name.rpartition(f"-{settings['method']['method']}")[0] or name
        data = _data_entries(folder / _ARGUMENTS)
        for key, entry in summary["datasets"].items():
            described = data.get(key, {})
            known = benchmark(described.get("dataset", key))
            questions = _scores(folder, f"{name}_{key}_score", known.name)
            if "error" in entry:
                found.notes.append(f"{folder}: {known.name} failed: {' '.join(str(entry['error']).split())}")
            if questions is None:
                if "error" not in entry:
                    found.notes.append(f"{folder}: {known.name} has no scores")
                continue
            counted = len(questions), sum(question.correct for question in questions)
            if counted != (stated := (entry.get("num_questions"), entry.get("num_correct"))):
                raise unreadable(folder, f"{known.name} has {counted} questions and right ones, its summary {stated}")
            means = entry.get("efficiency", {}).get("means", {})
            found.runs.append(
                Run(
                    source=folder,
                    model=model,
                    method=checked_method(settings["method"]),
                    benchmark=known,
                    questions=tuple(questions),
                    num_expected=known.num_questions,
                    num_frames=described.get("nframe"),
                    limited=settings.get("limit") is not None,
                    date=summary.get("environment", {}).get("date", ""),
                    tokens_before=number_or_none(means.get("visual_tokens_before")),
                    tokens_after=number_or_none(means.get("mean_visual_tokens")),
                    num_failed=count_or_none(entry.get("num_failures")),
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(folder / _SUMMARY, f"{type(error).__name__} {error}") from error
    return found


def _data_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The data sets' entries in the settings that a run was started with, if they are there."""
    if not path.is_file():
        return {}
    try:
        return {key: dict(entry) for key, entry in read_json(path)["settings"]["data"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, f"{type(error).__name__} {error}") from error


def _scores(folder: Path, stem: str, name: str) -> list[Judged] | None:
    """The toolkit's table of scores; None if there is none. What it could not score is not right."""
    rows: list[dict[str, Any]]
    if (path := folder / f"{stem}.xlsx").is_file():
        try:
            rows = read_xlsx(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
    elif (path := folder / f"{stem}.tsv").is_file():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
        except (OSError, ValueError, csv.Error) as error:
            raise unreadable(path, error) from error
    else:
        return None
    clip_columns, group_column = _COLUMNS.get(name, (("video",), "task_type"))
    try:
        return [
            Judged(
                question_id=str(row["index"]),
                correct=_is_one(row["score"]),
                video_id="/".join(str(row[column]) for column in clip_columns),
                group=None if row.get(group_column) is None else str(row[group_column]),
            )
            for row in rows
        ]
    except KeyError as error:
        raise unreadable(path, f"it has no column {error}") from error


def _is_one(score: Any) -> bool:
    try:
        return float(score) == 1
    except (TypeError, ValueError, OverflowError):
        return False


def read_lmms_eval(folder: Path) -> Found:
    """What lmms-eval and Tango's models left: `<time>_results.json`, `..._samples_<task>.jsonl`, `..._efficiency.json`.

    The efficiency file, which alone names the method, is written moments after the time that the results are named by:
    theirs is the first that is not older, and older than the next results.
    """
    found = Found([], [])
    times = [path.name.removesuffix("_results.json") for path in sorted(folder.glob("*_results.json"))]
    for time, following in zip(times, [*times[1:], "~"], strict=True):  # ~: after all digits
        efficiency = [
            path
            for path in sorted(folder.glob("*_efficiency.json"))
            if time <= path.name.removesuffix("_efficiency.json") < following
        ]
        if not efficiency:
            found.notes.append(f"{folder}: the results of {time} have no efficiency.json, which names their method")
            continue
        path = folder / f"{time}_results.json"
        try:
            measured = _checked_efficiency(efficiency[0])
            found.runs.extend(_lmms_runs(folder, time, read_json(path), measured, found.notes))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unreadable(path, f"{type(error).__name__} {error}") from error
    return found


def _checked_efficiency(path: Path) -> Mapping[str, Any]:
    """What Tango's models left, if it has what is read of it."""
    record = read_json(path)
    try:
        checked_method(record["config"]["method"])
        parts = record["means"], record.get("environment", {}), record.get("sums", {})
        if not all(isinstance(part, Mapping) for part in parts):
            raise TypeError("means, environment and sums must be objects")
        tasks = [question["task"] for question in record.get("failed_questions", [])]
        for text in (record["config"]["pretrained"], *tasks):
            if not isinstance(text, str):
                raise TypeError(f"checkpoints and tasks must be text, got {shown(text)}")
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, f"{type(error).__name__} {error}") from error
    return record


def _lmms_runs(
    folder: Path, time: str, results: Mapping[str, Any], efficiency: Mapping[str, Any], notes: list[str]
) -> Iterator[Run]:
    """One run for each benchmark; the tasks of MVBench are one."""
    config, means = efficiency["config"], efficiency["means"]
    by_benchmark: dict[str, list[Judged]] = {}
    originals: dict[str, int] = {}
    for path in sorted(folder.glob(f"{time}_samples_*.jsonl")):
        task = path.stem.removeprefix(f"{time}_samples_")
        known = benchmark(task)
        for number, sample in read_json_lines(path):
            try:
                by_benchmark.setdefault(known.name, []).append(_sample(task, known.name, sample))
            except KeyError as error:
                raise unreadable(path, f"line {number} has no {error}") from error
            except (TypeError, AttributeError) as error:
                raise unreadable(path, f"line {number}: {error}") from error
        originals[known.name] = originals.get(known.name, 0) + results["n-samples"][task]["original"]
    failed = _failed_by_benchmark(folder / f"{time}_results.json", efficiency, list(by_benchmark), notes)
    for name, asked in by_benchmark.items():
        known = benchmark(name)
        yield Run(
            source=folder / f"{time}_results.json",
            model=Path(config["pretrained"]).name,
            method=config["method"],
            benchmark=known,
            questions=tuple(asked),
            num_expected=known.num_questions or originals[name],
            num_frames=config.get("num_frames"),
            limited=results["config"].get("limit") is not None,
            date=str(efficiency.get("environment", {}).get("date", "")),
            tokens_before=number_or_none(means.get("visual_tokens_before")),
            tokens_after=number_or_none(means.get("mean_visual_tokens")),
            num_failed=failed.get(name),
        )


def _failed_by_benchmark(
    source: Path, efficiency: Mapping[str, Any], names: list[str], notes: list[str]
) -> dict[str, int]:
    """How many questions failed, by benchmark; a note where only the sum over all of them is known."""
    if (questions := efficiency.get("failed_questions")) is not None:
        of = [benchmark(question["task"]).name for question in questions]
        return {name: of.count(name) for name in names}
    sums = efficiency.get("sums", {})
    total = count_or_none(sums.get("failures"))
    if total is None:
        return {}
    if len(names) == 1 or total == 0:
        return dict.fromkeys(names, total)
    notes.append(f"{source}: {total} of {sums.get('samples')} questions failed and count as wrong ({', '.join(names)})")
    return {}


def _sample(task: str, name: str, sample: Mapping[str, Any]) -> Judged:
    """One line of a file of samples. The tasks of MVBench and MLVU do not record which clip a question is about."""
    question_id = f"{task}/{sample['doc_id']}"
    if name == "Video-MME":
        scored = sample["videomme_perception_score"]
        return judged(question_id, scored["score"] == 1, scored["videoID"], scored["duration"])
    if name == "LongVideoBench":
        scored = sample["lvb_acc"]
        right = scored["parsed_pred"] == scored["answer"]
        return judged(question_id, right, scored["id"].rpartition("_")[0], scored["duration_group"])
    if name == "MLVU":
        scored = sample["mlvu_percetion_score"]  # spelt like this
        return judged(question_id, scored["pred_answer"] == scored["answer"], None, scored["task_type"])
    if name == "MVBench":
        return judged(question_id, sample["mvbench_accuracy"]["score"] == 1, None, task)
    scored = next((value for value in sample.values() if isinstance(value, dict) and "score" in value), None)
    if scored is None:
        raise KeyError("score")
    return judged(question_id, scored["score"] == 1, scored.get("videoID"), scored.get("task_category"))


def _check_once(run: Run) -> None:
    seen: set[str] = set()
    for question in run.questions:
        if question.question_id in seen:
            raise unreadable(run.source, f"question {question.question_id} of {run.benchmark.name} is there twice")
        seen.add(question.question_id)
