"""Scored questions in Tango's form, `<time>_records.jsonl` and `<time>_run.json` (docs/file-formats.md).

python -m tango_lmms_eval.records logs     # for results of releases that wrote none
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from tango import TangoError, WriteError
from tango.report import benchmark, with_method, without_records, write_records

Answers = Mapping[tuple[str, int], Mapping[str, Any]]  # by task and document: tokens_before, tokens_after, error


def write(
    folder: Path,
    time: str,
    results: Mapping[str, Any],
    samples: Mapping[str, Iterable[Mapping[str, Any]]],
    efficiency: Mapping[str, Any],
    answers: Answers | None,
) -> Path:
    """Write the records of a run; the tasks of MVBench are one benchmark.

    Args:
        folder, time: the results' own.
        results, samples: as lmms-eval has them, samples by task.
        efficiency: what `<time>_efficiency.json` holds.
        answers: what is known of each answer; None: nothing, as of older results.
    Raises:
        TangoError: a sample is not what it should be, or the records cannot be written.
    """
    path = folder / f"{time}_records.jsonl"
    try:
        config, means = efficiency["config"], efficiency["means"]
        records, about = [], {}
        for task, of_task in samples.items():
            known = benchmark(task)
            own = about.setdefault(known.name, {})
            if known.num_questions is None:
                own["num_questions"] = own.get("num_questions", 0) + results["n-samples"][task]["original"]
            records += [_record(task, known.name, sample, answers) for sample in of_task]
        if answers is None:
            _count_failures(efficiency, records, about)
        environment = efficiency.get("environment", {})
        run = {
            "model": Path(config["pretrained"]).name,
            "method": config["method"],
            "num_frames": config.get("num_frames"),
            "limit": results["config"].get("limit"),
            "date": environment.get("date", ""),
            "mean_tokens_before": means.get("visual_tokens_before"),
            "mean_tokens_after": means.get("mean_visual_tokens"),
            "benchmarks": about,
            "settings": {name: value for name, value in config.items() if name not in ("method", "environment")},
            "environment": environment,
        }
        write_records(path, run, records)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TangoError(f"cannot make {path}: {type(error).__name__} {error}") from error
    return path


def _record(task: str, name: str, sample: Mapping[str, Any], answers: Answers | None) -> dict[str, Any]:
    """A failed question is not right, whatever was drawn for it."""
    correct, clip, group = judged(task, benchmark(name).family, sample)
    answer = {} if answers is None else answers[task, sample["doc_id"]]
    error, text = answer.get("error"), sample.get("filtered_resps")
    while isinstance(text, (list, tuple)) and len(text) == 1:
        text = text[0]
    return {
        "benchmark": name,
        "question_id": f"{task}/{sample['doc_id']}",
        "video_id": clip,
        "group": group,
        "correct": bool(correct) and error is None,
        "text": text if isinstance(text, str) else None,
        "answer": None if sample.get("target") is None else str(sample["target"]),
        "failed": None if answers is None else error is not None,
        "error": error,
        "tokens_before": answer.get("tokens_before"),
        "tokens_after": answer.get("tokens_after"),
    }


def judged(task: str, name: str, sample: Mapping[str, Any]) -> tuple[bool, Any, Any]:
    """Whether a sample is right, its clip and its group. Tasks of MVBench and MLVU do not record which clip it is."""
    if name == "Video-MME":
        scored = sample["videomme_perception_score"]
        return scored["score"] == 1, scored["videoID"], scored["duration"]
    if name == "LongVideoBench":
        scored = sample["lvb_acc"]
        return scored["parsed_pred"] == scored["answer"], scored["id"].rpartition("_")[0], scored["duration_group"]
    if name == "MLVU":
        scored = sample["mlvu_percetion_score"]  # spelt like this
        return scored["pred_answer"] == scored["answer"], None, scored["task_type"]
    if name == "MVBench":
        return sample["mvbench_accuracy"]["score"] == 1, None, task
    values = (value for key, value in sample.items() if key != "doc")  # the question itself may have a score
    scored = next((value for value in values if isinstance(value, dict) and "score" in value), None)
    if scored is None:
        raise KeyError("score")
    return scored["score"] == 1, scored.get("videoID"), scored.get("task_category")


def _count_failures(efficiency: Mapping[str, Any], records: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Say which questions failed, or how many, as far as older results tell."""
    if (listed := efficiency.get("failed_questions")) is not None:
        errors = {f"{failed['task']}/{failed['doc_id']}": failed["error"] for failed in listed}
        for record in records:
            record["error"] = errors.get(record["question_id"])
            record["failed"] = record["error"] is not None
    elif (total := efficiency.get("sums", {}).get("failures")) is not None:
        if total == 0 or len(about) == 1:
            for own in about.values():
                own["num_failed"] = total
        else:
            print(f"warning: {total} questions failed and count as wrong ({', '.join(about)})", file=sys.stderr)


def write_when_scored(folder: Path, efficiency: Mapping[str, Any], answers: Answers) -> None:
    """Have the records written as soon as lmms-eval has written its results, which has the scores.

    A model never sees them; what is called with them is the tracker, once for a run. Without --log_samples it is
    called without samples, and there are no records.
    """
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
    from loguru import logger

    current = EvaluationTracker.save_results_aggregated
    save = getattr(current, "__wrapped__", current)  # that of a run before, which failed, does not count any more

    @wraps(save)
    def save_and_record(tracker: Any, results: dict[str, Any], samples: Any, datetime_str: str) -> None:
        EvaluationTracker.save_results_aggregated = save
        save(tracker, results, samples, datetime_str)
        try:
            if samples:
                write(folder, datetime_str.replace(":", "-"), results, samples, efficiency, answers)
        except WriteError:
            raise
        except TangoError as error:  # a task whose scores are not known here; lmms-eval's own results are sound
            logger.warning(f"no records: {error}")

    EvaluationTracker.save_results_aggregated = save_and_record


def _convert(results: Path, efficiency: Path) -> Path:
    time = results.name.removesuffix("_results.json")
    samples = {}
    for path in sorted(results.parent.glob(f"{time}_samples_*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        samples[path.stem.removeprefix(f"{time}_samples_")] = [json.loads(line) for line in lines if line.strip()]
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in (results, efficiency)]
    return write(results.parent, time, parts[0], samples, parts[1], None)


def main() -> int:
    """Write records for the results below the folders that are named, where there are none."""
    parser = argparse.ArgumentParser(description="Write records for results of earlier releases.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    for folder in parser.parse_args().folders:
        for module, results in without_records(folder):
            if module == "tango_lmms_eval.records":
                try:
                    print(_convert(results, dict(with_method(results.parent))[results]), flush=True)
                except (TangoError, OSError, ValueError, RecursionError) as error:
                    print(f"error: {results}: {error}", file=sys.stderr)
                    return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
