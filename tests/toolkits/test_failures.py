"""Evaluations that failed: they end with a code other than 0 and say why, and leave no process behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toolkits import lmms
from tests.toolkits.checkpoints import CLIPS

ROOT = Path(__file__).parents[2]
KIT = ROOT / "VLMEvalKit"
MINI = ["--config", "run_config/tango_mini.json", "--datasets", "TangoMini", "--data-option", "num_clips=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    return lmms.write_videomme(tmp_path_factory.mktemp("failures"), clips, broken=True)


@pytest.fixture(scope="module")
def damaged(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that cannot be loaded: its weights end too early."""
    folder = tmp_path_factory.mktemp("damaged") / "llava-ov"
    shutil.copytree(checkpoints / "llava-ov", folder)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def kit(root: Path, *flags: object, **variables: str) -> tuple[list[str], dict[str, str]]:
    """The command line of run.py on tango-mini's data set, and its environment."""
    python_path = os.pathsep.join([str(ROOT), str(KIT)])
    environment = lmms.environ(root, PYTHONPATH=python_path, LMUData=str(root / "LMUData"), CUDA_VISIBLE_DEVICES="")
    return [sys.executable, "run.py", *MINI, *map(str, flags)], {**environment, **variables}


def run_kit(root: Path, *flags: object) -> subprocess.CompletedProcess[str]:
    command, environment = kit(root, *flags)
    return subprocess.run(command, env=environment, cwd=KIT, capture_output=True, text=True, timeout=900)


class TestLmmsEval:
    def ended(self, root: Path, arguments: list[str]) -> lmms.Run:
        return lmms.run(arguments, root, root / "out", WRAPPER="tango")

    def test_a_checkpoint_that_cannot_be_loaded(self, root: Path, damaged: Path) -> None:
        command = lmms.command([sys.executable], "llava_onevision", damaged, root / "damaged")
        done = self.ended(root, command)
        assert done.code == 2
        assert [line for line in done.err.splitlines() if line.startswith("error: cannot load")] != []
        assert "Traceback" not in done.err
        assert not list((root / "damaged").rglob("*_results.json"))

    def test_an_error_of_lmms_evals_own(self, root: Path, checkpoints: Path) -> None:
        command = lmms.command([sys.executable], "llava_onevision", checkpoints / "llava-ov", root / "unknown")
        command[command.index("videomme")] = "videomm"
        done = self.ended(root, command)
        assert done.code == 1
        assert done.err.rstrip().splitlines()[-1].startswith("Error during evaluation: Tasks not found: videomm.")

    def test_a_run_that_can_read_none_of_its_videos(self, root: Path, checkpoints: Path) -> None:
        output = root / "unreadable"
        command = lmms.command([sys.executable], "llava_onevision", checkpoints / "llava-ov", output)
        done = self.ended(root, [*command, "--offset", str(len(CLIPS) * len(lmms.QUESTIONS))])
        assert done.code == 1
        last = done.err.rstrip().splitlines()[-1]
        assert last.startswith("error: 4 of 4 questions failed, more than half; the first: VideoReadError: cannot read")
        assert not list(output.rglob("*_results.json"))
        record = json.loads(next(output.rglob("*_efficiency.json")).read_text())
        assert [question["task"] for question in record["failed_questions"]] == ["videomme"] * 4
        assert "missing.mp4" in record["failed_questions"][3]["error"]


class TestVlmevalkit:
    def test_a_checkpoint_that_cannot_be_loaded(self, root: Path, damaged: Path) -> None:
        done = run_kit(root, "--pretrained", damaged, "--method", "tango", "--work-dir", root / "kit")
        assert done.returncode != 0
        assert [line for line in done.stderr.splitlines() if line.startswith("error: cannot load")] != []
        assert "Traceback" not in done.stderr

    def test_a_finished_run_of_other_weights_is_not_taken_over(self, root: Path, tmp_path: Path) -> None:
        from tango.mini import folder

        shutil.copytree(folder(), tmp_path / "mini")
        flags = ["--pretrained", tmp_path / "mini", "--method", "tango", "--work-dir", tmp_path / "out", "--limit", "2"]
        assert run_kit(root, *flags).returncode == 0
        settings = tmp_path / "mini" / "generation_config.json"
        settings.write_text(settings.read_text() + " ")
        done = run_kit(root, *flags)
        assert done.returncode == 2
        last = done.stderr.rstrip().splitlines()[-1]
        assert last.startswith("run.py: error: the journal ")
        assert "holds answers of another configuration: got {'content': {'checkpoint': " in last

    def test_processes_end_with_the_script_that_started_them(self, root: Path, tmp_path: Path) -> None:
        _, environment = kit(
            root, PYTHON=sys.executable, CONFIG="run_config/tango_mini.json", METHODS="none", PROCESSES="2",
            OUTPUT=str(tmp_path),
        )  # fmt: skip
        script = subprocess.Popen(
            ["bash", "run_eval.sh"], env=environment, cwd=KIT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 900
        while len(lmms.descendants(script.pid)) < 3:  # torchrun and two workers
            assert script.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lmms.kill_alone(script)
