"""The commands in an installation from a wheel, and in a clone: the same words on the same input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.folders import everything, write_run

ROOT = Path(__file__).parents[1]
WHAT_A_WHEEL_IS_MADE_OF = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
COMMANDS = {
    "experiments": ["experiments", "1", "--runs"],
    "table": ["table", "4", "--results", "runs", "--model", "LLaVA-OneVision-7B"],
    "runs": ["runs", "--results", "runs"],
    "methods": ["methods"],
    "flops": ["flops", "--shape", "llava-onevision-7b"],
    "answer": ["answer", "clip.mp4", "which color is first", "--model", "tango-mini", "--config", "tango-paper"],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel that it built of a copy; nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("tango", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in WHAT_A_WHEEL_IS_MADE_OF:
        shutil.copy(ROOT / name, folder / "source" / name)
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "source")
    return folder / "site"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with results and a clip."""
    from tango.mini import clip_file

    folder = tmp_path_factory.mktemp("elsewhere")
    write_run(folder / "runs", {"method": "none"}, everything("111111101101;11111100;111010;1111011"))
    shutil.copy(clip_file(folder, 0), folder / "clip.mp4")
    return folder


def run(place: Path, folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tango", *command]
    return subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True)


def untimed(text: str) -> str:
    return re.sub(r"ms: .*\]", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_says_the_same_from_a_wheel_and_from_a_clone(name: str, wheel: Path, elsewhere: Path) -> None:
    installed, cloned = (run(place, elsewhere, COMMANDS[name]) for place in (wheel, ROOT))
    assert installed.returncode == 0, installed.stderr
    assert (untimed(installed.stdout), installed.stderr) == (untimed(cloned.stdout), cloned.stderr)
    assert installed.stdout


def test_the_wheel_is_what_was_run(wheel: Path, elsewhere: Path) -> None:
    code = "import tango, tango.files; print(tango.__file__, tango.files.configs_folder())"
    environ = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == [str(wheel / "tango" / "__init__.py"), str(wheel / "tango" / "configs")]
