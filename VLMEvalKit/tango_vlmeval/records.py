"""Scored questions in Tango's form, `records.jsonl` and `run.json` (docs/file-formats.md), from the toolkit's tables.

python -m tango_vlmeval.records outputs     # for results of releases that wrote none
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tango import TangoError
from tango.evaluation import label_of
from tango.report import Benchmark, benchmark, with_subtitles, without_records, write_records
from tango_vlmeval.settings import STORED

SUMMARY = "tango_summary.json"
# Columns, by benchmark: what its paper groups its questions by (MLVU's own number, M-Avg, is the mean over the groups),
# and what names the clip.
_GROUP = {"Video-MME": "duration", "LongVideoBench": "duration_group"}
_CLIP = {"MVBench": ("prefix", "video"), "MLVU": ("prefix", "video")}


def group_column(entry: Mapping[str, Any], key: str) -> str:
    """The column of a table of scores that groups the questions of a data set."""
    return _GROUP.get(_benchmark(entry, key).family, "task_type")


def _benchmark(entry: Mapping[str, Any], key: str) -> Benchmark:
    known = benchmark(entry.get("dataset", key))
    return with_subtitles(known) if entry.get("use_subtitle") else known


def write(folder: Path) -> None:
    """Write the records of one model and method: of every data set that its summary tells of.

    Raises:
        TangoError: the summary, the settings or a table of scores is not what it should be.
        WriteError: the records cannot be written.
    """
    try:
        summary, stored = read_json(folder / SUMMARY), read_json(folder / STORED)
        settings, name = summary["settings"], summary["model"]
        data = stored.get("settings", {}).get("data", {})
        records: list[dict[str, Any]] = []
        about: dict[str, Any] = {}
        names = Counter(_benchmark(data.get(key, {}), key).name for key in summary["datasets"])
        shared = {name for name, count in names.items() if count > 1}  # by several entries: their keys tell them apart
        for key, found in summary["datasets"].items():
            entry = data.get(key, {})
            known = _benchmark(entry, key)
            title = key if benchmark(key) == known or known.name in shared else known.name
            about[title] = _of_benchmark(entry, found)
            table = scores(folder, f"{name}_{key}")
            if table is None:
                about[title].setdefault("error", "no scores")
            else:
                answered = read_json(folder / f"{name}_{key}_tango.json").get("tokens", {})
                records += _of_questions(title, known, table, found, answered)
        environment = summary.get("environment", {})
        run = {
            "model": _model(name, settings["method"]),
            "method": settings["method"],
            "limit": settings.get("limit"),
            "date": environment.get("date", ""),
            "benchmarks": about,
            "settings": settings.get("arguments", {}),
            "environment": environment,
        }
        write_records(folder / "records.jsonl", run, records)
    except TangoError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise TangoError(f"cannot make records of {folder}: {type(error).__name__} {error}") from error


def _model(name: str, method: Mapping[str, Any]) -> str:
    """What stands before the label of the run, or before the method: other releases have other labels."""
    ends = (f"-{label_of(method)}", f"-{method['method']}")
    return next((model for end in ends if (model := name.rpartition(end)[0])), name)


def _of_benchmark(entry: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    means = found.get("efficiency", {}).get("means", {})
    about = {
        "num_frames": entry.get("nframe"),
        "num_failed": found.get("num_failures"),
        "mean_tokens_before": means.get("visual_tokens_before"),
        "mean_tokens_after": means.get("mean_visual_tokens"),
    }
    return {**about, "error": str(found["error"])} if "error" in found else about


def _of_questions(
    title: str,
    known: Benchmark,
    table: Any,
    found: Mapping[str, Any],
    tokens: Mapping[str, tuple[float | None, float | None]],
) -> list[dict[str, Any]]:
    """The rows of a table of scores. What the toolkit could not score is not right."""
    errors = {str(failure["index"]): failure["error"] for failure in found.get("failures", [])}
    all_known = len(errors) == found.get("num_failures")  # which ones failed, not only how many
    clip, group = _CLIP.get(known.family, ("video",)), _GROUP.get(known.family, "task_type")
    records = []
    for row in table.to_dict("records"):
        index = str(row["index"])
        before, after = tokens.get(index, (None, None))
        records.append({
            "benchmark": title,
            "question_id": index,
            "video_id": "/".join(str(row[column]) for column in clip),
            "group": _text(row.get(group)),
            "correct": bool(row["score"] == 1),
            "text": _text(row.get("prediction")),
            "answer": _text(row.get("answer")),
            "failed": index in errors if all_known else None,
            "error": errors.get(index),
            "tokens_before": before,
            "tokens_after": after,
        })  # fmt: skip
    return records


def _text(value: Any) -> str | None:
    import pandas

    return None if value is None or pandas.isna(value) else str(value)


def scores(folder: Path, stem: str) -> Any:
    """The toolkit's table of scores; None if there is none."""
    import pandas

    if (path := folder / f"{stem}_score.xlsx").is_file():
        return pandas.read_excel(path)
    return pandas.read_csv(path, sep="\t") if (path := path.with_suffix(".tsv")).is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> int:
    """Write records for the runs below the folders that are named, where there are none."""
    parser = argparse.ArgumentParser(description="Write records.jsonl and run.json for results of earlier releases.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    try:
        for folder in parser.parse_args().folders:
            for module, found in without_records(folder):
                if module == "tango_vlmeval.records":
                    write(found)
                    print(found / "records.jsonl", flush=True)
    except ModuleNotFoundError as error:
        print(f"error: {error}; run it where the toolkits are installed (scripts/environment.sh)", file=sys.stderr)
        return 2
    except TangoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
