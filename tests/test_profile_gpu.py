"""`scripts/profile_gpu.sh`, tried without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tango
from tango.cli import _parser
from tango.commands import profile
from tango.lab.bench import pruner

ROOT = Path(tango.__file__).parent.parent


def run_script(*options: str, python: str | Path = sys.executable, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python), **settings}
    script = ["bash", str(ROOT / "scripts" / "profile_gpu.sh"), *options]
    return subprocess.run(script, env=environment, capture_output=True, text=True)


def fake_python(folder: Path, *lines: str) -> Path:
    """An interpreter that knows a GPU, says what it was called with, and then does this."""
    python = folder / "python"
    known = 'if [ "$1" = -c ]; then echo some_gpu; exit; fi'
    python.write_text("\n".join(["#!/bin/bash", known, 'echo "called: $*"', *lines]) + "\n")
    python.chmod(0o755)
    return python


def test_asks_for_the_right_things_and_passes_options_on(tmp_path: Path) -> None:
    done = run_script("--repeats", "1", python=fake_python(tmp_path))
    calls = [line.split()[1:] for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert all(call[:2] == ["-m", "tango.cli"] for call in calls)
    *pruners, plain, compiled = [_parser(call[2:]).parse_args(call[2:]) for call in calls]
    assert [(args.run, args.data, args.device, args.dtype, args.frames) for args in pruners] == [
        (pruner.run, data, "cuda", "bfloat16", [32, 128]) for data in ("video", "iid")
    ]
    assert (plain.run, compiled.run) == (profile.run, profile.run)
    assert (plain.repeats, compiled.repeats) == (1, 1)
    assert (plain.compile, compiled.compile) == (None, "reduce-overhead")
    files = [args.output.as_posix() for args in (*pruners, plain, compiled)]
    assert files == [
        "results/bench_pruner_some_gpu_video.json", "results/bench_pruner_some_gpu_iid.json",
        "results/profile_some_gpu.json", "results/profile_some_gpu_compiled.json",
    ]  # fmt: skip
    methods = [f"{name}{code}" for code in ("", "-engineplain") for name in ("tango-r0.1", "tango-r0.15", "tango-r0.2")]
    assert [one.label for one in profile.candidates_from(plain)] == [
        f"{method}, {tower} tower" for tower in ("sdpa", "eager") for method in ("none", *methods)
    ]
    assert [one.label for one in profile.candidates_from(compiled)] == ["none", "tango-r0.1"]


def test_goes_on_after_a_failure_and_shows_what_there_is(tmp_path: Path) -> None:
    """The pruner fails; the model runs out of time after it has written something."""
    file = tmp_path / "profile_some_gpu.json"
    lines = [
        "[[ $* == *bench* ]] && exit 1",
        f"[[ $* == *--output* ]] && echo partial > {file} && exit 124",
        "exit 0",
    ]
    done = run_script(python=fake_python(tmp_path, *lines), RESULTS=str(tmp_path), STEPS="pruner profile")
    assert done.returncode == 1
    calls = done.stdout.splitlines()
    assert len(calls) == 4
    assert calls[-1] == f"called: -m tango.cli profile --record {file} --markdown"
    assert done.stderr.count("ended with status 1 ") == 2
    assert done.stderr.count("ended with status 124 ") == 1


def test_stops_when_the_time_is_up(tmp_path: Path) -> None:
    done = run_script(python=fake_python(tmp_path), LIMIT_S="0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("no time left for: tango") == 4


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = run_script(python=tmp_path / "nothing")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "needs torch and a CUDA GPU" in done.stderr
    done = run_script(python=fake_python(tmp_path), STEPS="proflie")
    assert (done.returncode, done.stderr) == (2, "unknown step 'proflie'; known: pruner profile compiled\n")


def test_really_runs_on_a_cpu(tmp_path: Path) -> None:
    """The steps with a model; compiling is switched off, as it takes a minute."""
    small = ["--layers", "1", "--tower-layers", "1", "--repeats", "1", "--max-new-tokens", "2"]
    settings = {"DEVICE": "cpu", "SHAPE": "llava-onevision-tiny", "FRAMES": "1", "RESULTS": str(tmp_path / "new")}
    patience = {"LIMIT_S": "100000", "TORCHDYNAMO_DISABLE": "1"}
    done = run_script(*small, **settings, **patience, STEPS="profile compiled")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "new")) == ["profile_cpu.json", "profile_cpu_compiled.json"]
    for name, rows in (("profile_cpu.json", 14), ("profile_cpu_compiled.json", 2)):
        record = json.loads((tmp_path / "new" / name).read_text())
        assert [row["runs"] for row in record["rows"]] == [1] * rows
        assert all({"tower", "prune", "prefill"} <= set(row["stages_ms"]) for row in record["rows"])
        gains = [row["speedup"]["ttft_over_eager"] for row in record["rows"]]
        assert all(gain["median"] > 0 for gain in gains) if rows == 14 else gains == [None, None]
    assert done.stdout.count("| Avg_ViT_Time (ms) |") == 2
    assert done.stdout.count(" | TTFT over none, eager tower |") == 1
