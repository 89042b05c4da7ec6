"""Folders of records with verdicts of the tests' choosing.

`tests/data/results` has real ones; those here have few questions each, all of whose verdicts a test knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tango.evaluation import MethodConfig
from tango.report import benchmarks
from tango.report.benchmarks import Benchmark
from tango.report.records import write_records

# The four benchmarks with as many questions as there are below.
MINIATURE = tuple(
    Benchmark(name=known.name, num_questions=count, mean_of_groups=known.mean_of_groups, aliases=known.aliases)
    for known, count in zip(benchmarks.BENCHMARKS, (12, 8, 6, 7), strict=True)
)
# Clip and group of each question.
_QUESTIONS = {
    "Video-MME": [(f"vid{i // 3}", ("short", "medium", "long")[i // 3 % 3]) for i in range(12)],
    "MVBench": [(f"clips/{i // 4}//{i % 2}.mp4", ("Action Count", "State Change")[i // 4]) for i in range(8)],
    "LongVideoBench": [(f"lv{i // 2}", (15, 3600)[i // 3]) for i in range(6)],
    "MLVU_MCQ": [(f"./MLVU/video/ml{i}.mp4", "needle" if i < 5 else "plotQA") for i in range(7)],
}
NAMES = tuple(_QUESTIONS)


def verdicts(text: str) -> list[bool]:
    """From "1011 01": 1 is right, 0 wrong."""
    return [character == "1" for character in text if character != " "]


def everything(text: str) -> dict[str, list[bool]]:
    """Verdicts of the four benchmarks, from one text with a semicolon between them."""
    return dict(zip(NAMES, map(verdicts, text.split(";")), strict=True))


def write_run(
    outputs: Path,
    settings: Mapping[str, Any],
    answers: Mapping[str, Sequence[bool]],
    *,
    model: str = "LLaVA-OneVision-7B",
    errors: Mapping[str, str] | None = None,
    limit: int | None = None,
    date: str = "2026-01-01T00:00:00+00:00",
    tokens: tuple[float, float | None] = (6272.0, 640.0),
    num_frames: int = 32,
    failed: Mapping[str, int] | None = None,
) -> Path:
    """A folder of one model and method, as the toolkits' adapters leave it."""
    method = MethodConfig.from_settings(settings)
    folder = outputs / (f"{model}-{method.label}" + ("" if limit is None else f"-limit{limit}"))
    lines, about = [], {}
    for key, right in answers.items():
        about[f"{key}_32frame"] = {"num_failed": (failed or {}).get(key, 0)}
        questions = zip(_QUESTIONS[key], right, strict=False)
        lines += [
            {"benchmark": f"{key}_32frame", "question_id": i, "video_id": clip, "group": group, "correct": one}
            for i, ((clip, group), one) in enumerate(questions)
        ]
    about |= {f"{key}_32frame": {"error": message} for key, message in (errors or {}).items()}
    write_lines(
        folder / "records.jsonl", settings, lines, model=model, date=date, limit=limit, benchmarks=about,
        num_frames=num_frames, mean_tokens_before=tokens[0], mean_tokens_after=tokens[1],
    )  # fmt: skip
    return folder


def write_lines(path: Path, settings: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], **run: Any) -> Path:
    """A file of records, and what is said of all of them."""
    method = MethodConfig.from_settings(settings).to_dict()
    write_records(path, {"model": "LLaVA-OneVision-7B", "method": method, **run}, lines)
    return path


def unnamed_clips(task: str, right: Sequence[bool]) -> list[dict[str, Any]]:
    """Records of a task of lmms-eval's that does not say which clip a question is about."""
    return [
        {"benchmark": "MVBench", "question_id": f"{task}/{i}", "video_id": None, "correct": one}
        for i, one in enumerate(right)
    ]


FULL = "111111101101;11111100;111010;1111011"
PRUNED = "111110101100;11110000;101010;1111000"


def five_runs(folder: Path) -> Path:
    """All tokens, Tango at two ratios, another method, and Tango with a layer pruner; every question has a verdict."""
    write_run(folder, {"method": "none"}, everything(FULL), tokens=(6272.0, 6272.0))
    write_run(folder, {"method": "tango", "retention_ratio": 0.1}, everything(PRUNED), tokens=(6272.0, 640.0))
    write_run(folder, {"method": "tango", "retention_ratio": 0.2}, everything(FULL), tokens=(6272.0, 1280.0))
    write_run(folder, {"method": "fastv", "retention_ratio": 0.1}, everything(PRUNED), tokens=(6272.0, 627.2))
    inside = {"method": "tango", "retention_ratio": 0.1, "pruned_layer": 18}
    write_run(folder, inside, everything(FULL), tokens=(6272.0, 640.0))
    return folder
