"""What came out: one JSON file per model and method, and a table over all of them.

python -m tango_vlmeval.summary outputs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tango import TangoError, WriteError
from tango.evaluation import environment, write_json
from tango_vlmeval import records
from tango_vlmeval.records import SUMMARY, read_json
from tango_vlmeval.settings import Run

MOST_FAILED = 0.5  # with more questions than this share without an answer a data set has failed


def summarise(run: Run, *, scored: bool = True) -> list[str]:
    """Write `tango_summary.json` and the records beside the results of every model; say what is wrong, one line each.

    Args:
        scored: False where the toolkit was asked for predictions only.
    """
    problems = []
    for name in run.config["model"]:
        folder = run.work_dir / name
        status = read_json(folder / "status.json").get("datasets", {})
        datasets = {key: _of_dataset(folder, name, key, entry) for key, entry in run.config["data"].items()}
        for key, found in datasets.items():
            if error := status.get(key, {}).get("error_message"):
                found["error"] = error
            elif scored and "accuracy_percent" not in found:
                found["error"] = status.get(key, {}).get("skip_reason") or "no scores"
            elif (failed := found.get("num_failures", 0)) > MOST_FAILED * (asked := _num_asked(found)):
                first = found["failures"][0]["error"]
                found["error"] = f"{failed} of {asked} questions failed, more than half; the first: {first}"
            elif failed:
                print(f"run.py: warning: {name}, {key}: {failed} of {asked} questions failed and count as wrong",
                      file=sys.stderr)  # fmt: skip
            if "error" in found:
                problems.append(f"{name}, {key}: {found['error']}")
        if name in run.models:
            settings = {**run.models[name].to_dict(), "limit": run.limit}
            before = read_json(folder / SUMMARY).get("datasets", {})
            summary = {"model": name, "settings": settings, "datasets": {**before, **datasets}}
            write_json(folder / SUMMARY, {**summary, "environment": environment()})
            try:
                records.write(folder)
            except WriteError as error:
                problems.append(f"{name}: {error}")
            except TangoError as error:  # a table that is not known here; the toolkit's own results are sound
                print(f"run.py: warning: {name}: {error}", file=sys.stderr)
    return problems


def _num_asked(found: dict[str, Any]) -> int:
    return found["efficiency"]["sums"]["samples"] if "efficiency" in found else 0


def _of_dataset(folder: Path, name: str, key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Accuracy from the toolkit's table of scores; failures, tokens and times from the record of the answers."""
    found: dict[str, Any] = {}
    stem = f"{name}_{key}"
    if (scores := records.scores(folder, stem)) is not None:
        # A question that the toolkit could not score is not right.
        right = scores["score"].map(lambda score: float(score == 1))
        found = {
            "accuracy_percent": 100 * float(right.mean()),
            "num_correct": int(right.sum()),
            "num_questions": len(scores),
        }
        group_by = records.group_column(entry, key)
        if group_by in scores:
            means = right.groupby(scores[group_by]).mean() * 100
            found["groups_percent"] = {str(group): float(mean) for group, mean in means.items()}
            found["mean_of_groups_percent"] = float(means.mean())
    if record := read_json(folder / f"{stem}_tango.json"):
        found |= {"num_failures": len(record["failures"])}
        found |= {name: part for name, part in record.items() if name != "tokens"}  # those stand in the records
    return found


def table(folders: Iterable[Path]) -> str:
    """A Markdown table of accuracies in percent, one row per model and method."""
    summaries = [read_json(path) for folder in folders for path in sorted(folder.glob(f"*/{SUMMARY}"))]
    keys = list(dict.fromkeys(key for summary in summaries for key in summary["datasets"]))
    lines = [f"| model | {' | '.join(keys)} | failed |", "|---" * (len(keys) + 2) + "|"]
    for summary in summaries:
        found = [summary["datasets"].get(key, {}) for key in keys]
        cells = [f"{one['accuracy_percent']:.1f}" if "accuracy_percent" in one else "-" for one in found]
        failures = sum(one.get("num_failures", 0) for one in found)
        lines.append(f"| {summary['model']} | {' | '.join(cells)} | {failures} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table of the runs in the folders that are named."""
    parser = argparse.ArgumentParser(description="A table of all results in output folders.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    print(table(parser.parse_args().folders))
    return 0


if __name__ == "__main__":
    sys.exit(main())
