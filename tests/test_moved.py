"""Modules under their former names are the very modules under their new ones, with a word about it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import tango
from tango.moved import MOVED, name_now

ROOT = Path(tango.__file__).parents[1]


@pytest.mark.parametrize("former", MOVED)
def test_a_former_name_is_not_taken_and_the_new_one_exists(former: str) -> None:
    assert not (ROOT / former.replace(".", "/")).with_suffix(".py").exists()
    assert find_spec(MOVED[former]) is not None


@pytest.mark.parametrize(
    "former", ["tango.quickstart", "tango.pruning", "tango.shapes", "tango.bench.reliability.corpus"]
)
def test_a_former_name_gives_the_module_itself_and_says_so(former: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name_now(name)]:
        monkeypatch.delitem(sys.modules, name)
    now = name_now(former)
    assert now is not None
    with pytest.warns(DeprecationWarning, match="is now tango") as said:  # of the packages above it, too
        found = import_module(former)
    assert f"{former} is now {now}" in str(said[-1].message)
    assert found is import_module(now)
    assert (found.__name__, found.__spec__ and found.__spec__.name) == (now, now)


def test_names_of_a_moved_module_can_be_imported() -> None:
    code = (
        "from tango.quickstart import draw_frames; from tango.toy import draw_frames as now; print(draw_frames is now)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert done.stderr == "" or "DeprecationWarning" in done.stderr


def test_an_example_that_left_the_package_says_where_it_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tango.examples.finetune"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode != 0
    assert "python examples/finetune.py" in done.stderr


def test_other_names_are_not_touched() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tango\.nothing'"):
        import_module("tango.nothing")
