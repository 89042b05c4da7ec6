"""Result folders as the adapters of releases without records left them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tango.evaluation import MethodConfig

_COLUMNS: dict[str, list[dict[str, Any]]] = {
    "Video-MME": [
        {"index": i, "video": f"vid{i // 3}", "duration": ("short", "medium", "long")[i // 3 % 3], "answer": "A"}
        for i in range(12)
    ],
    "MVBench": [
        {"task_type": ("Action Count", "State Change")[i // 4], "prefix": f"clips/{i // 4}/", "video": f"{i % 2}.mp4"}
        for i in range(8)
    ],
    "LongVideoBench": [{"duration_group": (15, 3600)[i // 3], "id": f"lv{i // 2}_{i % 2}", "video": f"lv{i // 2}"}
                       for i in range(6)],
    "MLVU_MCQ": [{"task_type": "needle" if i < 5 else "plotQA", "prefix": "./MLVU/video", "video": f"ml{i}.mp4"}
                 for i in range(7)],
}  # fmt: skip


def write_vlmevalkit(
    outputs: Path,
    settings: Mapping[str, Any],
    answers: Mapping[str, Sequence[bool]],
    *,
    model: str = "LLaVA-OneVision-7B",
    errors: Mapping[str, str] | None = None,
    limit: int | None = None,
    date: str = "2026-01-01T00:00:00+00:00",
    tokens: tuple[float, float] = (6272.0, 640.0),
    num_frames: int = 32,
    failed: Mapping[str, int] | None = None,
) -> Path:
    """A folder as `tango_vlmeval` leaves it, with its tables of scores as TSV (as with PRED_FORMAT=tsv)."""
    method = MethodConfig.from_settings(settings)
    name = f"{model}-{method.label}" + ("" if limit is None else f"-limit{limit}")
    folder = outputs / name
    folder.mkdir(parents=True)
    entries: dict[str, Any] = {}
    for key, right in answers.items():
        rows = [{"index": i, **row} for i, row in enumerate(_COLUMNS[key])][: len(right)]
        rows = [{**row, "prediction": "A\nor so", "score": int(one)} for row, one in zip(rows, right, strict=True)]
        with (folder / f"{name}_{key}_32frame_score.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
        entries[f"{key}_32frame"] = {
            "accuracy_percent": 100 * sum(right) / len(right),
            "num_correct": sum(right),
            "num_questions": len(right),
            "num_failures": (failed or {}).get(key, 0),
            "efficiency": {"means": {"visual_tokens_before": tokens[0], "mean_visual_tokens": tokens[1]}},
        }
    for key, message in (errors or {}).items():
        entries[f"{key}_32frame"] = {"error": message}
    described = {"method": method.to_dict(), "arguments": {"pretrained": "somewhere"}, "limit": limit}
    data = {key: {"dataset": key.removesuffix("_32frame"), "nframe": num_frames} for key in entries}
    write_json(folder / "tango_args.json", {"command": "run.py", "settings": {"model": {}, "data": data}})
    summary = {"model": name, "settings": described, "datasets": entries, "environment": {"date": date}}
    write_json(folder / "tango_summary.json", summary)
    return folder


def write_lmms_eval(
    folder: Path,
    settings: Mapping[str, Any],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    model: str = "lmms-lab/llava-onevision-qwen2-7b-ov",
    time: str = "20260101_120000",
    efficiency_time: str = "20260101_120001",
    limit: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """A folder as lmms-eval and `tango_lmms_eval` leave it. `samples`: by task, what a line holds beside its number;
    `more`: what the efficiency file holds beside its configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, lines in samples.items():
        text = "".join(json.dumps({"doc_id": i, **line}) + "\n" for i, line in enumerate(lines))
        (folder / f"{time}_samples_{task}.jsonl").write_text(text)
    counts = {task: {"original": len(lines), "effective": len(lines)} for task, lines in samples.items()}
    write_json(folder / f"{time}_results.json", {"results": {}, "n-samples": counts, "config": {"limit": limit}})
    config = {"pretrained": model, "method": MethodConfig.from_settings(settings).to_dict()}
    means = {"visual_tokens_before": 6272.0, "mean_visual_tokens": 640.0}
    record = {"config": config, "environment": {"date": f"{time[:4]}-01-01"}, "means": means, **(more or {})}
    write_json(folder / f"{efficiency_time}_efficiency.json", record)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
