"""The scripts that ask tango-mini without a toolkit, really run on one clip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Sourced by others; and one that hands its flags to a command in the environment that it makes.
NO_HELP = {"environment.sh", "fetch.sh", "help.sh", "imports.sh", "index.sh", "quickstart.sh"}
SCRIPTS = ("mini_tables.sh", "tower_merging.sh")


def run(script: str, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **settings}
    command = ["bash", str(ROOT / "scripts" / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes(script: str) -> None:
    assert run(script, "--help").stdout.startswith("Usage: ")
    wrong = run(script, "--nope")
    assert wrong.returncode == 2
    assert "unknown argument --nope" in wrong.stderr


@pytest.mark.parametrize("script", sorted({file.name for file in (ROOT / "scripts").glob("*.sh")} - NO_HELP))
def test_help_does_nothing_else(tmp_path: Path, script: str) -> None:
    """Every script that people start prints what it is for, wherever it is started."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "scripts" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 2
    assert list(tmp_path.iterdir()) == []


def test_rows_are_run_once_and_rendered(tmp_path: Path) -> None:
    settings = {"TABLES": "1", "RATIOS": "0.05", "EXACT": "1", "CLIPS": "1", "OUTPUT": str(tmp_path)}
    made = [tmp_path / "none---.records.jsonl", tmp_path / "uniform-0.05-_exact_budget_True.records.jsonl"]
    for file in made:  # two of its rows, as an earlier run left them
        flags = (
            ["--method", "none"]
            if file.name.startswith("none")
            else ["--method", "uniform", "--retention-ratio", "0.05"]
        )
        flags += [] if file.name.startswith("none") else ["--option", "exact_budget=True"]
        command = [
            sys.executable,
            "-m",
            "tango.cli",
            "mini",
            "evaluate",
            *flags,
            "--num-frames",
            "16",
            "--num-clips",
            "1",
        ]
        command += ["--clips", str(tmp_path / "clips"), "--output", str(file)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    done = run("mini_tables.sh", RUN="0", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "table1-exact.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in done.stdout.splitlines() if "| ours |" in line}
    assert "n=10" in rows["full"]
    assert " 5 |" in rows["uniform"]
