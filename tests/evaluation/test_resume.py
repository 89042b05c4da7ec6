"""A run that is killed and started again ends with the records of a run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.conftest import FRAMES

ROOT = Path(__file__).parent.parent.parent
# Answers a rank's share of the questions. Waits for a line on stdin before each answer that is not in the journal.
SCRIPT = """
import json, sys
from tango.evaluation import Answerer, MethodConfig, Question

files, journal, rank, world_size, num_frames, batch_size = sys.argv[1:2] + sys.argv[2:3] + list(map(int, sys.argv[3:]))
def ask(i):
    parts = [{"type": "video", "video": f"{files}/{i % 4}.mp4"}, {"type": "text", "text": f"Why{i}?"}]
    return Question(messages=[{"role": "user", "content": parts}], max_new_tokens=4, num_frames=num_frames)

method = MethodConfig(method="uniform", options={"retention_ratio": 0.5})
with Answerer(f"{files}/llava-ov", method=method, journal=journal, rank=rank, batch_size=batch_size) as answerer:
    for answer in answerer.answers(ask(i) for i in range(rank, 9, world_size)):
        print(json.dumps([answer.text, answer.visual_tokens_after, answer.cached]), flush=True)
        if not answer.cached and not sys.stdin.readline():
            raise SystemExit("no more lines")
    print(json.dumps(answerer.efficiency().to_dict()), flush=True)
"""


class Run:
    """The script as a process of its own."""

    def __init__(self, files: Path, journal: Path, rank: int = 0, world_size: int = 1, batch_size: int = 1):
        numbers = map(str, (rank, world_size, FRAMES, batch_size))
        command = [sys.executable, "-c", SCRIPT, str(files), str(journal), *numbers]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def read(self, count: int) -> list:
        """The next lines; the process waits after each."""
        lines = []
        for _ in range(count):
            lines.append(json.loads(self.process.stdout.readline()))
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return lines

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL
        self.process.stdout.close()
        self.process.stdin.close()

    def finish(self) -> list:
        """All lines that are left."""
        out, _ = self.process.communicate("\n" * 20)
        assert self.process.returncode == 0
        return [json.loads(line) for line in out.splitlines()]


def records(lines: list) -> list:
    return [[text, tokens] for text, tokens, _ in lines]


@pytest.fixture(scope="module")
def undisturbed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict]:
    *lines, efficiency = Run(files, tmp_path_factory.mktemp("undisturbed")).finish()
    assert [cached for _, _, cached in lines] == [False] * 9
    return records(lines), efficiency


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_was_finished_before_a_kill_is_kept(files, tmp_path, undisturbed, batch_size):
    expected, table = undisturbed
    run = Run(files, tmp_path, batch_size=batch_size)
    before = run.read(4)
    run.kill()
    *lines, efficiency = Run(files, tmp_path, batch_size=batch_size).finish()
    assert records(lines) == expected
    assert records(before) == expected[:4]
    resumed = sum(cached for _, _, cached in lines)
    # The process was at work on what follows the answers that were read, or had done it.
    assert 4 <= resumed <= 4 + batch_size
    counts = ("samples", "failures", "measured", "input_tokens", "output_tokens", "visual_tokens_after")
    assert {name: efficiency["sums"][name] for name in counts} == {name: table["sums"][name] for name in counts}
    assert efficiency["sums"]["resumed"] == resumed
    assert set(efficiency["rows"]) == set(table["rows"])
    keys = [json.loads(line)["key"] for line in (tmp_path / "answers-00000.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 9


def test_another_number_of_processes_goes_on_with_the_same_journal(files, tmp_path, undisturbed):
    expected, _ = undisturbed
    run = Run(files, tmp_path)
    run.read(3)
    run.kill()
    both = [Run(files, tmp_path, rank, 2) for rank in range(2)]
    shares = [run.finish()[:-1] for run in both]
    assert [records(share) for share in shares] == [expected[::2], expected[1::2]]
    assert sum(cached for share in shares for _, _, cached in share) >= 3
    assert len(list(tmp_path.glob("answers-*.jsonl"))) == 2
