"""The benchmark: clips from seeds that training never uses, and their questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tango.files import write_bytes
from tango.mini.files import write_clip
from tango.mini.questions import Question, ask_all
from tango.mini.scenes import Clip, draw_clip

BENCHMARK = 2  # every clip's seed begins with it; the seeds of `tango.lab.training.recipe` begin with 1


def benchmark_seed(index: int) -> tuple[int, ...]:
    """The seed of clip number `index`."""
    return (BENCHMARK, 0, 0, index)


def benchmark_clip(index: int) -> tuple[Clip, list[Question]]:
    """Draw clip number `index`, and one question of every kind that it allows; the same on every machine."""
    seed = benchmark_seed(index)
    clip = draw_clip(seed)
    return clip, ask_all(clip, np.random.default_rng((*seed, 1 << 20)))


def clip_file(folder: Path, index: int, *, blank: bool = False) -> Path:
    """Path of a benchmark clip in a folder of clips; the clip is written if it is not there.

    Several processes may ask at once: one writes, the others wait.

    Args:
        blank: the same frame times, but all frames are grey.
    Example:
        >>> clip_file(Path("."), 0).name
        'clip_0000.mp4'
    """
    file = folder / f"{'blank' if blank else 'clip'}_{index:04d}.mp4"
    if not file.exists():
        with FileLock(folder / ".lock"):  # gone with the process, however it ends
            if not file.exists():
                write_clip(file, benchmark_clip(index)[0], blank=blank)
    return file


def cache_name() -> str:
    """Name for a folder of clips that may be kept; it changes with the code that draws the clips.

    Example:
        >>> cache_name()
        'tango-mini-...'
    """
    code = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("benchmark", "files", "scenes", "shapes")]
    return f"tango-mini-{hashlib.sha256(b''.join(code)).hexdigest()[:8]}"


def benchmark_questions(num_clips: int) -> Iterator[dict[str, Any]]:
    """Yield all questions about the first clips, clip by clip.

    Example:
        >>> next(benchmark_questions(1))
        {'clip': 0, 'kind': 'letter', 'text': 'what is the letter', 'options': ('u', 'p', 'x', 's'), 'answer': 'u'}
    """
    for index in range(num_clips):
        for question in benchmark_clip(index)[1]:
            yield {"clip": index, **asdict(question)}


def write_questions(folder: Path, num_clips: int) -> Path:
    """Write all questions as JSON lines: clip, video, kind, question, options, answer."""
    file = folder / "questions.jsonl"
    lines = ({"video": f"clip_{asked['clip']:04d}.mp4", **asked} for asked in benchmark_questions(num_clips))
    write_bytes(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return file
