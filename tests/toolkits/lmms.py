"""Launches lmms-eval as a user does: its own command line, its own Video-MME task, a miniature copy of the data."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.toolkits.checkpoints import CLIPS

DURATIONS = ("short", "medium", "long")
QUESTIONS = (
    "What colour is the upper bar?",
    "Which way does the pattern move, and how fast?",
    "How does the clip end?",
)


def write_videomme(root: Path, clips: Path, *, broken: bool = False) -> Path:
    """Video-MME as lmms-eval wants it: `root` is the working directory, `root/home` is HF_HOME.

    Three questions about each clip; with `broken`, three about an unreadable file and one about a missing one, too.
    """
    import pandas

    videos = [*CLIPS, *(["broken"] if broken else [])]
    asked = [(name, question) for name in videos for question in QUESTIONS]
    if broken:
        asked.append(("missing", QUESTIONS[0]))
    rows = [
        {
            "video_id": f"{videos.index(name) if name in videos else len(videos):03d}",
            "duration": DURATIONS[i % 3],
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": f"https://www.youtube.com/watch?v={name}",
            "videoID": name,
            "question_id": f"{i:03d}-1",
            "task_type": "Object Recognition",
            "question": question,
            "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
            "answer": "ABCD"[i % 4],
        }
        for i, (name, question) in enumerate(asked)
    ]
    table = root / "lmms-eval" / "Video-MME" / "videomme" / "test-00000-of-00001.parquet"
    data = root / "home" / "videomme" / "data"
    table.parent.mkdir(parents=True)
    data.mkdir(parents=True)
    pandas.DataFrame(rows).to_parquet(table)
    for name in videos:
        shutil.copy(clips / f"{name}.mp4", data)
    return root


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    code: int
    out: str
    err: str
    folder: Path

    def _only(self, pattern: str) -> Path:
        found = sorted(self.folder.rglob(pattern))
        assert len(found) == 1, f"{len(found)} {pattern} in {self.folder}\n{self.out[-3000:]}\n{self.err[-3000:]}"
        return found[0]

    def results(self) -> dict[str, Any]:
        return json.loads(self._only("*_results.json").read_text())

    def efficiency(self) -> dict[str, Any]:
        return json.loads(self._only("*_efficiency.json").read_text())

    def samples(self, task: str = "videomme") -> list[dict[str, Any]]:
        """By document; several processes write theirs one after the other."""
        lines = self._only(f"*_samples_{task}.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])

    def answers(self) -> list[str]:
        return [sample["filtered_resps"] for sample in self.samples()]


def environ(root: Path, **changes: str) -> dict[str, str]:
    """The environment of a launch: nothing of ours but what is given, one thread, no network."""
    kept = {k: v for k, v in os.environ.items() if k != "WRAPPER" and not k.startswith(("TANGO_", "PYTEST", "COV"))}
    fixed = {"HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, **fixed, "PATH": path, **changes}


def model_args(checkpoint: Path, **changes: Any) -> str:
    """Those of the README's command, with fewer frames."""
    told = {
        "pretrained": checkpoint,
        "conv_template": "qwen_1_5",
        "model_name": "llava_qwen",
        "attn_implementation": "flash_attention_2",
        "max_frames_num": 8,
        **changes,
    }
    return ",".join(f"{name}={value}" for name, value in told.items())


def command(launcher: list[str], model: str, checkpoint: Path, output: Path, **changes: Any) -> list[str]:
    """The README's command, with another launcher, model, checkpoint or output."""
    return [
        *launcher, "-m", "lmms_eval", "--model", model, "--model_args", model_args(checkpoint, **changes),
        "--tasks", "videomme", "--batch_size", "1", "--log_samples", "--log_samples_suffix", model,
        "--output_path", str(output),
    ]  # fmt: skip


def run(arguments: list[str], root: Path, output: Path, **changes: str) -> Run:
    """Run a command to its end in `root`."""
    done = subprocess.run(
        arguments, cwd=root, env=environ(root, **changes), capture_output=True, text=True, timeout=900
    )
    return Run(done.returncode, done.stdout, done.stderr, output)


def run_until(arguments: list[str], root: Path, reached: Callable[[], bool], **changes: str) -> None:
    """Start a command and, as soon as `reached` says so, kill it as the kernel would; its processes end with it."""
    started = subprocess.Popen(
        arguments, cwd=root, env=environ(root, **changes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while started.poll() is None and not reached():
            time.sleep(0.01)
        assert started.poll() is None, f"the command ended by itself, with code {started.returncode}"
    finally:
        kill_alone(started)


def kill_alone(launcher: subprocess.Popen[Any]) -> None:
    """Kill a launcher and nothing else; all that it started must end by itself."""
    family = descendants(launcher.pid) if launcher.poll() is None else []
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 300  # of what hangs
    while any(map(is_running, family)):
        if time.monotonic() > deadline:
            for process in filter(is_running, family):
                os.kill(process, signal.SIGKILL)
            raise AssertionError("processes went on without their launcher")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def descendants(pid: int) -> list[int]:
    """Processes that a process started, directly or not; launchers put theirs into groups of their own."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
