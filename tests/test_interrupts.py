"""Ctrl-C: one line and exit code 130, whenever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PRESS = "import os, signal; press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
# Ctrl-C at the moment when a module is about to be imported.
AT_IMPORT = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            press()
sys.meta_path.insert(0, Finder())
sys.argv[:] = ["tango", "answer", "clip.mp4", "What?", "--model", "tango-mini"]
"""
RUN = "from tango.processes import run; import sys\nsys.exit(run('tango', lambda: program))"


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run Python as a terminal does, where Ctrl-C works. In a script's background, as these may run, it does not."""
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, **options
    )


def assert_interrupted(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (130, "tango: interrupted\n")


@pytest.mark.parametrize("module", ["tango.cli", "tango.errors", "tango.commands.answer", "torch", "torch._C"])
@pytest.mark.parametrize("start", ["import runpy; runpy.run_module('tango', run_name='__main__')"])
def test_while_modules_load(module, start):
    assert_interrupted(python("-c", PRESS + AT_IMPORT.format(module=module) + start))


def test_while_modules_load_under_the_name_of_the_module():
    start = "import runpy; runpy.run_module('tango.cli', run_name='__main__', alter_sys=True)"
    assert_interrupted(python("-W", "ignore", "-c", PRESS + AT_IMPORT.format(module="argparse") + start))


MOMENTS = {
    "running": "def program(): press()",
    "turned into another error": (
        "def program():\n    try: press()\n    except BaseException: raise RuntimeError('failed to start')"
    ),
    "swallowed": "def program():\n    try: press()\n    except BaseException: pass\n    return 0",
    "in a destructor": (
        "class Thing:\n    def __del__(self): press()\n"
        "def program():\n    thing = Thing()\n    del thing\n    import time; time.sleep(60)"
    ),
    "with a thread that goes on": (
        "import threading\ndef program():\n    threading.Thread(target=threading.Event().wait).start()\n    press()"
    ),
    "while Python ends": "import atexit\ndef program():\n    atexit.register(press)\n    return 0",
    "reported as a defect": (
        "from tango import cli\ndef broken(*_):\n    try: press()\n    except BaseException: pass\n"
        "    raise ImportError('only half of it is there')\n"
        "cli._parser = broken\ndef program(): return cli.main(['methods'])"
    ),
    "twice": "def program():\n    try: press()\n    finally: press()",
}


@pytest.mark.parametrize("program", MOMENTS.values(), ids=MOMENTS)
def test_at_any_moment(program):
    assert_interrupted(python("-c", f"{PRESS}{program}\n{RUN}"))


def test_what_runs_puts_things_in_order(tmp_path):
    program = f"""
import pathlib
from tango.files import write_bytes
def program():
    folder = pathlib.Path({str(tmp_path)!r})
    os.replace = lambda *_: press()
    write_bytes(folder / "record.json", b"new")
"""
    (tmp_path / "record.json").write_text("old")
    assert_interrupted(python("-c", PRESS + program + RUN))
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert (tmp_path / "record.json").read_text() == "old"


def test_who_started_it_without_gets_it_without():
    program = "def program():\n    press()\n    return 7"
    done = python("-c", f"{PRESS}{program}\n{RUN}", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (7, "")


def test_exit_codes_and_errors_pass():
    done = python("-c", f"def program(): raise KeyError('defect')\n{RUN}")
    assert done.returncode == 1
    assert "KeyError: 'defect'" in done.stderr
    assert python("-c", f"def program(): return 3\n{RUN}").returncode == 3


@pytest.mark.parametrize("module", ["tango", "tango.cli"])
def test_both_names_run(module):
    done = python("-m", module, "--version")
    assert (done.returncode, done.stdout[:12], done.stderr) == (0, "tango-video ", "")


def test_starting_imports_no_library():
    code = "import sys, tango.__main__ as m; sys.argv[:] = ['tango', '--help']\ntry: m.main()\nexcept SystemExit: pass"
    done = python("-c", f"{code}\nprint(*sorted(m.partition('.')[0] for m in sys.modules))")
    assert {"torch", "numpy", "transformers", "av", "yaml"} & set(done.stdout.splitlines()[-1].split()) == set()
