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
    *pruners, onevision, qwen, video = [_parser(call[2:]).parse_args(call[2:]) for call in calls]
    assert [(args.run, args.data, args.device, args.dtype, args.frames) for args in pruners] == [
        (pruner.run, data, "cuda", "bfloat16", [32, 128]) for data in ("video", "take", "iid")
    ]
    models = (onevision, qwen, video)
    assert [(args.run, args.repeats, args.roofline) for args in models] == [(profile.run, 1, True)] * 3
    assert [(args.random_weights, args.num_frames) for args in models] == [
        ("llava-onevision-7b", 32), ("qwen2.5-vl-7b", 32), ("llava-video-7b", 64)
    ]  # fmt: skip
    pruned = ["none", "tango-r0.1", "tango-r0.2"]
    also = [f"tango-r0.1, {how}" for how in ("flash_attention_2 tower", "static cache", "compiled tower")]
    for args in models:
        stock = [] if args is video else ["stock"]
        assert [one.label for one in profile.candidates_from(args)] == [*stock, *pruned, *also]
    assert [args.output.as_posix() for args in (*pruners, *models)] == [
        *(f"results/bench_pruner_some_gpu_{data}.json" for data in ("video", "take", "iid")),
        *(f"results/profile_some_gpu_{name}-7b.json" for name in ("llava-onevision", "qwen2.5-vl", "llava-video")),
    ]


def test_goes_on_after_a_failure_and_shows_what_there_is(tmp_path: Path) -> None:
    """The pruner fails; the model runs out of time after it has written something."""
    file = tmp_path / "profile_some_gpu_qwen2.5-vl-7b.json"
    lines = [
        "[[ $* == *bench* ]] && exit 1",
        f"[[ $* == *--output* ]] && echo partial > {file} && exit 124",
        "exit 0",
    ]
    done = run_script(python=fake_python(tmp_path, *lines), RESULTS=str(tmp_path), STEPS="pruner qwen2.5-vl")
    assert done.returncode == 1
    calls = done.stdout.splitlines()
    assert len(calls) == 5
    assert calls[-1] == f"called: -m tango.cli profile --record {file} --markdown"
    assert done.stderr.count("ended with status 1 ") == 3
    assert done.stderr.count("ended with status 124 ") == 1


def test_stops_when_the_time_is_up(tmp_path: Path) -> None:
    done = run_script(python=fake_python(tmp_path), LIMIT_S="0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("no time left for: tango") == 6


def test_a_step_may_take_its_part_of_what_is_left(tmp_path: Path) -> None:
    """`timeout` is a script that prints its limit: steps that need no time leave theirs to those after them."""
    (tmp_path / "timeout").write_text('#!/bin/bash\necho "limit $3"\n')
    (tmp_path / "timeout").chmod(0o755)
    python = fake_python(tmp_path)
    done = run_script(python=python, LIMIT_S="600", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    limits = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert limits[0] in range(90, 101)
    assert limits == sorted(limits)
    assert limits[-1] > 500


def test_resumes_what_was_not_measured_to_its_end(tmp_path: Path) -> None:
    rows = {"llava-onevision": [3, 3], "qwen2.5-vl": [3, 2]}
    for name, runs in rows.items():
        record = {"config": {"repeats": 3}, "rows": [{"error": None, "runs": n} for n in runs]}
        (tmp_path / f"profile_cpu_{name}-7b.json").write_text(json.dumps(record))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "called: $*"\n')
    python.chmod(0o755)
    settings = {"RESULTS": str(tmp_path), "STEPS": " ".join(rows), "DEVICE": "cpu"}
    assert len(run_script(python=python, **settings, RESUME="1").stdout.splitlines()) == 2
    done = run_script(python=python, **settings, RESUME="1")
    assert done.stdout.startswith("measured before: ")
    assert "called: -m tango.cli profile --random-weights qwen2.5-vl-7b" in done.stdout
    assert run_script(python=python, **settings).stdout.count("called: ") == 2


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = run_script(python=tmp_path / "nothing")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "needs torch and a CUDA GPU" in done.stderr
    done = run_script(python=fake_python(tmp_path), STEPS="proflie")
    assert (done.returncode, done.stderr) == (
        2,
        "unknown step 'proflie'; known: pruner llava-onevision qwen2.5-vl llava-video\n",
    )


def test_really_runs_on_a_cpu(tmp_path: Path) -> None:
    """All models, tiny; the compiled tower as Python, since compiling takes a minute."""
    small = ["--layers", "1", "--tower-layers", "2", "--repeats", "1", "--max-new-tokens", "2"]
    settings = {"DEVICE": "cpu", "SIZE": "tiny", "FRAMES": "2", "RESULTS": str(tmp_path / "new"), "LIMIT_S": "100000"}
    steps = {"STEPS": "llava-onevision qwen2.5-vl llava-video", "ALSO": "static compiled", "TORCHDYNAMO_DISABLE": "1"}
    done = run_script(*small, **settings, **steps)
    assert done.returncode == 0, done.stderr
    names = ("llava-onevision", "llava-video", "qwen2.5-vl")
    assert sorted(os.listdir(tmp_path / "new")) == [f"profile_cpu_{name}-tiny.json" for name in names]
    for name in names:
        record = json.loads((tmp_path / "new" / f"profile_cpu_{name}-tiny.json").read_text())
        rows = {row["label"]: row for row in record["rows"]}
        stock = [] if name == "llava-video" else ["stock"]
        pruned = ["tango-r0.1", "tango-r0.2", "tango-r0.1, static cache", "tango-r0.1, compiled tower"]
        assert list(rows) == [*stock, "none", *pruned]
        assert all(row["runs"] == 1 and {"tower", "prefill"} <= set(row["stages_ms"]) for row in rows.values())
        assert all(row["speedup"]["ttft"]["median"] > 0 for row in rows.values())
        assert record["config"]["ceilings"].keys() == {"flops_per_s", "bytes_per_s"}
        assert all({"tower", "prefill", "decoding"} <= set(row["work"]) for row in rows.values())
    assert done.stdout.count("| Avg_ViT_Time (ms) |") == 3
    assert done.stdout.count("| floor ms (share reached) |") == 3
    assert done.stdout.count("speed-ups over stock transformers") == 2
