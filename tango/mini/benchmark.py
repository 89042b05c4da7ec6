"""The benchmark set: clips from seeds that training never uses, and their questions."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tango.mini.files import write_clip
from tango.mini.questions import Question, ask_all
from tango.mini.recipe import benchmark_seed
from tango.mini.scenes import Clip, draw_clip


def benchmark_clip(index: int) -> tuple[Clip, list[Question]]:
    """Clip number `index` and one question of every kind that it allows; the same on every machine."""
    seed = benchmark_seed(index)
    clip = draw_clip(seed)
    return clip, ask_all(clip, np.random.default_rng((*seed, 1 << 20)))


def clip_file(folder: Path, index: int) -> Path:
    """Where a benchmark clip lies in a folder of clips; it is written first if it is not there."""
    file = folder / f"clip_{index:04d}.mp4"
    if not file.exists():
        write_clip(file, benchmark_clip(index)[0])
    return file


def write_questions(folder: Path, num_clips: int) -> Path:
    """Write all questions as JSON lines: video, kind, question, options, answer."""
    file = folder / "questions.jsonl"
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("w", encoding="utf-8") as lines:
        for index in range(num_clips):
            for question in benchmark_clip(index)[1]:
                lines.write(json.dumps({"video": f"clip_{index:04d}.mp4", **asdict(question)}) + "\n")
    os.replace(partial, file)
    return file
