"""Mistakes that users make at the shell: one line and exit code 2, without a traceback; defects of Tango are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tango.cli import main
from tango.files import write_bytes
from tango.toy import write_clip

ROOT = Path(__file__).parents[1]
MINI = ["--model", "tango-mini", "--offline"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, num_frames=8, size=64)
    return str(path)


def one_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said about a mistake; argparse says how to use the command before it."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr().err.splitlines()
    assert code == 2, said
    assert len(said) == 1 or said[0].startswith("usage: ")
    assert "error: " in said[-1]
    return said[-1]


FILES = {
    "a name that is a number": ("method: tango\n1: 2\n", "unknown option of tango '1'"),
    "a name that is a date": ("!!timestamp 2020-01-01: 2\n", "names that are no text"),
    "nested without end": ("[" * 20_000, "nested too deeply"),
    "a list": ("- method: tango\n", "got list"),
    "a null byte": ("a: \0\n", "cannot read"),
    "a tag that fails": ("!!timestamp x\n", "cannot read"),
    "a date that is none": ("retention_ratio: 2020-13-45\n", "must be a number"),
    "a number without end": ("retention_ratio: " + "9" * 5_000, "must lie in"),
    "a method that is a list": ("method: [tango]\n", "must be a name"),
    "a ratio in words": ("retention_ratio: ten\n", "must be a number"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_files_of_options(tmp_path, capsys, content, message):
    file = tmp_path / "method.yaml"
    file.write_text(content)
    assert message in one_line(capsys, "answer", "clip.mp4", "What?", *MINI, "--config", file)


def test_files_of_options_that_are_no_text(tmp_path, capsys):
    (tmp_path / "method.yaml").write_bytes(b"# gr\xfc\xdfe\n")
    assert "cannot read" in one_line(capsys, "answer", "clip.mp4", "W?", *MINI, "--config", tmp_path / "method.yaml")
    assert "cannot read" in one_line(capsys, "answer", "clip.mp4", "W?", *MINI, "--config", tmp_path)


OPTIONS = {
    "name=x": "unknown option of tango 'name'",
    "self=x": "unknown option of tango 'self'",
    "alpha=" + "[" * 5_000: "alpha must be a number",
    "alpha={a: 1}": "alpha must be a number",
    "alpha=inf": "alpha must lie in",
    "alpha=nan": "alpha must lie in",
    "retention_ratio=nan": "must lie in",
    "num_neighbors=1" + "0" * 400: "num_neighbors must lie in",
    "alpha=!!python/object:os.system x": "alpha must be a number",
}


@pytest.mark.parametrize(("option", "message"), OPTIONS.items(), ids=[option[:20] for option in OPTIONS])
def test_options(capsys, option, message):
    assert message in one_line(capsys, "answer", "clip.mp4", "What?", *MINI, "--option", option)


COMMANDS = {
    "no tokens": (["answer", "clip.mp4", "What?", *MINI, "--max-new-tokens", "0"], "expected a positive whole number"),
    "more frames than there are": (["inspect", "clip.mp4", *MINI, "--num-frames", "1" + "0" * 30], "at most 100000"),
    "no text": (["answer", "clip.mp4", "\udcff", *MINI], "expected text in UTF-8"),
    "a negative seed": (["runs", "--results", "x.jsonl", "--seed", "-1"], "expected a whole number from 0"),
    "countless threads": (["bench", "pruner", "--threads", "9" * 8], "expected at most 1024 threads"),
    "no device": (["mini", "train", "new", "--device", "phone"], "unknown device 'phone'"),
    "no steps": (["mini", "train", "new", "--vision-steps", "0"], "expected a positive whole number"),
    "frames without end": (["flops", "--model", "tango-mini", "--frames", "1" + "0" * 400], "at most 1000000000"),
    "no folder to write to": (["compare", "x.mp4", *MINI, "--output", f"{__file__}/x"], "nothing has been done yet"),
    "nobody's home": (["flops", "--model", "~nobody-of-this-name/x"], "no checkpoint at"),
    "a name too long": (["flops", "--model", "x" * 5_000], "no checkpoint at"),
    "nobody's home to write to": (["convert", "tango-mini", "~nobody-of-this-name/x"], "cannot write"),
}


@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_arguments(capsys, arguments, message):
    assert message in one_line(capsys, *arguments)


def test_a_device_that_computes_nothing(clip, capsys):
    assert "meta computes nothing" in one_line(capsys, "answer", clip, "What?", *MINI, "--device", "meta")


RECORDS = {
    "not JSON": ("no", "cannot read"),
    "nested": ('{"a":' * 50_000, "nested too deeply"),
    "a list": ("[]", "not written by tango profile"),
    "rows of another kind": ('{"benchmark": "profile", "rows": [5], "config": {}}', "not written by tango profile"),
    "without rows": ('{"benchmark": "profile"}', "not written by tango profile"),
}


@pytest.mark.parametrize(("content", "message"), RECORDS.values(), ids=RECORDS)
def test_records_of_the_profile(tmp_path, capsys, content, message):
    (tmp_path / "record.json").write_text(content)
    assert message in one_line(capsys, "profile", "--record", tmp_path / "record.json")


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    results = ROOT / "tests" / "data" / "results"
    for output in (tmp_path / "file" / "table.md", tmp_path / "file" / "x" / "table.md"):
        assert main(["table", "1", "--results", str(results), "--output", str(output)]) == 2
        *notes, error = capsys.readouterr().err.splitlines()
        assert all(note.startswith("tango: warning: ") for note in notes)  # of questions that failed in these runs
        assert error.startswith("tango: error: ")
        assert str(tmp_path) in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ZeroDivisionError("x")])
def test_a_defect_is_told_with_its_traceback(capsys, monkeypatch, error):
    def run(_args: object) -> int:
        raise error

    monkeypatch.setattr("tango.commands.methods.run", run)
    assert main(["methods"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("tango: this is a defect of Tango; please report it")


def test_an_error_of_a_library_is_a_defect_and_one_of_a_check_is_none(capsys, monkeypatch):
    monkeypatch.setattr("tango.commands.methods.run", lambda _args: np.linspace(0, 1, 10**30))
    assert main(["methods"]) == 1
    monkeypatch.setattr("tango.commands.methods.run", lambda _args: write_clip(Path("no.mp4"), num_frames=-1, size=0))
    capsys.readouterr()
    monkeypatch.setattr("tango.commands.methods.run", lambda _args: json.loads("{"))
    assert main(["methods"]) == 1


def tango(arguments: str, redirection: str, **options) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; {sys.executable} -m tango {arguments} {redirection}"
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, **options
    )


def test_a_reader_that_stops_is_no_error():
    for arguments in ("--help", "experiments 1 --runs"):
        done = tango(arguments, "| true")
        assert (done.returncode in (0, 141), done.stderr) == (True, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output():
    done = tango("experiments 1 --runs", "> /dev/full")  # argparse itself says nothing
    assert done.returncode == 2
    assert done.stderr == "tango: error: cannot write the output: [Errno 28] No space left on device\n"


def test_a_limit_on_the_size_of_files(tmp_path):
    """Stands in for a full disk: the system refuses in the middle of a file."""
    code = (
        "import resource, pathlib; from tango.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_bytes(pathlib.Path({str(tmp_path / 'record.json')!r}), bytes(5000))"
    )
    (tmp_path / "record.json").write_text("old")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    said = done.stderr.splitlines()[-1]
    assert said.endswith("record.json': [Errno 27] File too large; what was there before is untouched")
    assert (tmp_path / "record.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    write_bytes(pipe, b"record")
    assert reader.communicate(timeout=60)[0] == b"record"
    assert pipe.is_fifo()
