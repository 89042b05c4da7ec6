"""Readers of recorded results: folders of VLMEvalKit and of lmms-eval, and JSON lines.

    results = read_results([Path("VLMEvalKit/outputs"), Path("logs"), Path("mine.jsonl")])

Three things are read: folders of VLMEvalKit with Tango's models, folders of lmms-eval with Tango's models, and JSON
lines, one judged question each, in files called `*records.jsonl` (any name if the file itself is given):

    {"model": "LLaVA-OneVision-7B", "method": {"method": "tango", "options": {"retention_ratio": 0.1}},
     "benchmark": "Video-MME", "question_id": "001-1", "video_id": "fFjv93ACGo8", "correct": true}

`method` has the fields of `tango.evaluation.MethodConfig`. A line may also have `group` (such as Video-MME's duration),
`num_questions` (of the whole benchmark), `num_frames`, `date` (ISO 8601, of the run), and visual tokens:
`tokens_before` without pruning, and `tokens_after`, what is left of them in the mean over the LLM's layers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tango.errors import TangoError
from tango.report.benchmarks import benchmark
from tango.report.results import Judged, Results, Run, number_or_none, read_json, read_json_lines, unreadable
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
        found, remarks = read_file(path) if path.is_file() else read_folder(path)
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
        _add(found, read_file(file))
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
        data = read_json(folder / _ARGUMENTS)["settings"]["data"] if (folder / _ARGUMENTS).is_file() else {}
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
                    method=settings["method"],
                    benchmark=known,
                    questions=tuple(questions),
                    num_expected=known.num_questions,
                    num_frames=described.get("nframe"),
                    limited=settings.get("limit") is not None,
                    date=summary.get("environment", {}).get("date", ""),
                    tokens_before=number_or_none(means.get("visual_tokens_before")),
                    tokens_after=number_or_none(means.get("mean_visual_tokens")),
                )
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(folder / _SUMMARY, f"{type(error).__name__} {error}") from error
    return found


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
    except (TypeError, ValueError):
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
            found.runs.extend(_lmms_runs(folder, time, read_json(path), read_json(efficiency[0])))
        except (KeyError, TypeError, AttributeError) as error:
            raise unreadable(path, f"{type(error).__name__} {error}") from error
    return found


def _lmms_runs(folder: Path, time: str, results: Mapping[str, Any], efficiency: Mapping[str, Any]) -> Iterator[Run]:
    """One run for each benchmark; the tasks of MVBench are one."""
    config, means = efficiency["config"], efficiency["means"]
    by_benchmark: dict[str, list[Judged]] = {}
    originals: dict[str, int] = {}
    for path in sorted(folder.glob(f"{time}_samples_*.jsonl")):
        task = path.stem.removeprefix(f"{time}_samples_")
        known = benchmark(task)
        try:
            judged = [_sample(task, known.name, sample) for sample in read_json_lines(path)]
        except KeyError as error:
            raise unreadable(path, f"a line has no {error}") from error
        by_benchmark.setdefault(known.name, []).extend(judged)
        originals[known.name] = originals.get(known.name, 0) + results["n-samples"][task]["original"]
    for name, judged in by_benchmark.items():
        known = benchmark(name)
        yield Run(
            source=folder / f"{time}_results.json",
            model=Path(config["pretrained"]).name,
            method=config["method"],
            benchmark=known,
            questions=tuple(judged),
            num_expected=known.num_questions or originals[name],
            num_frames=config.get("num_frames"),
            limited=results["config"].get("limit") is not None,
            date=efficiency.get("environment", {}).get("date", ""),
            tokens_before=number_or_none(means.get("visual_tokens_before")),
            tokens_after=number_or_none(means.get("mean_visual_tokens")),
        )


def _sample(task: str, name: str, sample: Mapping[str, Any]) -> Judged:
    """One line of a file of samples. The tasks of MVBench and MLVU do not record which clip a question is about."""
    question_id = f"{task}/{sample['doc_id']}"
    if name == "Video-MME":
        scored = sample["videomme_perception_score"]
        return Judged(question_id, scored["score"] == 1, scored["videoID"], scored["duration"])
    if name == "LongVideoBench":
        scored = sample["lvb_acc"]
        right = scored["parsed_pred"] == scored["answer"]
        return Judged(question_id, right, scored["id"].rpartition("_")[0], str(scored["duration_group"]))
    if name == "MLVU":
        scored = sample["mlvu_percetion_score"]  # spelt like this
        return Judged(question_id, scored["pred_answer"] == scored["answer"], None, scored["task_type"])
    if name == "MVBench":
        return Judged(question_id, sample["mvbench_accuracy"]["score"] == 1, None, task)
    scored = next((value for value in sample.values() if isinstance(value, dict) and "score" in value), None)
    if scored is None:
        raise KeyError("score")
    return Judged(question_id, scored["score"] == 1, scored.get("videoID"), scored.get("task_category"))


def read_file(path: Path) -> Found:
    """JSON lines, one judged question each; `tango.report.results` has their fields."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in read_json_lines(path):
        parts.setdefault(json.dumps([record.get(name) for name in ("model", "method", "benchmark")]), []).append(record)
    found = Found([], [])
    for records in parts.values():
        try:
            found.runs.append(_records_run(path, records))
        except KeyError as error:
            raise unreadable(path, f"a line has no {error}") from error
    return found


def _records_run(path: Path, records: list[dict[str, Any]]) -> Run:
    first = records[0]
    known = benchmark(first["benchmark"])
    for record in records:
        if not isinstance(record["correct"], bool):
            raise unreadable(path, f"correct must be true or false, got {record['correct']!r}")
    return Run(
        source=path,
        model=first["model"],
        method=first["method"],
        benchmark=known,
        questions=tuple(
            Judged(
                str(record["question_id"]),
                record["correct"],
                str(record["video_id"]),
                None if record.get("group") is None else str(record["group"]),
            )
            for record in records
        ),
        num_expected=first.get("num_questions", known.num_questions),
        num_frames=first.get("num_frames"),
        date=max(record.get("date", "") for record in records),
        tokens_before=_mean_of(records, "tokens_before"),
        tokens_after=_mean_of(records, "tokens_after"),
    )


def _mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    counts = [record[name] for record in records if name in record]
    return sum(counts) / len(counts) if counts else None


def _check_once(run: Run) -> None:
    seen: set[str] = set()
    for question in run.questions:
        if question.question_id in seen:
            raise unreadable(run.source, f"question {question.question_id} of {run.benchmark.name} is there twice")
        seen.add(question.question_id)
