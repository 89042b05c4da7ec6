"""`tango doctor` as a user meets it: in processes of their own, in sound installations and in broken ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tango
from tango.doctor import DATA, GROUPS, environment, run_group
from tango.doctor.clip import FILE, NUM_FRAMES, PLANES, decoded_planes
from tango.mini.benchmark import benchmark_clip
from tango.mini.files import to_yuv
from tango.mini.scenes import render_frame
from tango.video.sampling import sample_indices

ROOT = Path(__file__).parent.parent
NAMES = [name for names in GROUPS.values() for name in names]


def doctor(*options: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command with folders put before the others on Python's path."""
    there = os.pathsep.join(filter(None, [path, str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", "import sys; from tango.cli import main; sys.exit(main())", "doctor", *options],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": there, **environment}, cwd=ROOT / "tests",
    )  # fmt: skip


def test_a_sound_installation_has_no_fault():
    run = doctor("--json", "--timeout", "1200", HF_HUB_OFFLINE="1")
    record = json.loads(run.stdout)
    assert run.returncode == 0, run.stdout
    assert run.stderr == ""
    assert (record["tango"], record["status"]) == (tango.__version__, "ok")
    checks = {check["name"]: check for check in record["checks"]}
    assert list(checks) == NAMES
    for check in checks.values():
        assert set(check) == {"name", "status", "detail", "way_out"}
        assert check["status"] in ("ok", "note")
        assert check["detail"]
        assert "\n" not in check["detail"] + check["way_out"]
    assert {checks[name]["status"] for name in ("python", "packages", "decode", "answer", "write_rights")} == {"ok"}
    assert "'cyan' from 392 tokens" in checks["answer"]["detail"]


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """Status, and detail with way out, of every check in an installation in which much is broken at once."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "tango", folder / "tango", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tango" / "doctor" / "data" / "clip.mp4").write_bytes(b"\0" * 5000)
    for name, code in {
        "lmms_eval": "import os; os.abort()",
        "vlmeval": "print('noise'); import sys; sys.exit('vlmeval wants another torch')",
        "flash_attn": "raise ImportError('undefined symbol: _ZN3c10')",
    }.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    for name, version, files in (("transformers", "4.40.0", ""), ("pytango", "10.0.0", "tango/__init__.py,,\n")):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(files)
    (folder / "a_file").write_text("")
    run = doctor("--timeout", "1200", path=str(folder), HF_HUB_OFFLINE="1", HF_HOME=str(folder / "a_file" / "cache"))
    assert (run.returncode, run.stderr) == (1, "")
    *lines, last = run.stdout.splitlines()
    assert re.fullmatch(rf"\d+ of {len(NAMES)} checks failed", last)
    found = {words[1]: (words[0], words[2]) for words in (line.split(maxsplit=2) for line in lines)}
    assert list(found) == NAMES
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    {
        "versions": r"transformers 4\.40\.0 is older than 5\.17; way out: pip install 'transformers>=5\.17'",
        "name_clash": r"also install a package named tango: pytango.*way out: pip uninstall pytango",
        "write_rights": r"the Hugging Face cache, .*a_file/cache/hub, cannot be written",
        "decode": r"VideoReadError: cannot read video",
        "answer": r"undefined symbol: _ZN3c10",  # transformers imports it, too
        "flash_attention": r"cannot be imported: ImportError: undefined symbol: _ZN3c10; way out",
        "lmms_eval": r"the check died of SIGABRT",
        "vlmevalkit": r"vlmeval cannot be imported: SystemExit: vlmeval wants another torch; way out",
    }.items(),
)
def test_each_fault_is_named(broken, name, said):
    status, text = broken[name]
    assert status == "failed"
    assert re.search(said, text), text


def test_a_fault_does_not_touch_the_other_checks(broken):
    assert {name: broken[name][0] for name in ("python", "packages", "cpu")} == dict.fromkeys(
        ("python", "packages", "cpu"), "ok"
    )
    assert "SIGABRT" not in broken["tango_lmms_eval"][1]  # which came after it in the same group


def test_a_check_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("import time; time.sleep(1000)")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = run_group("readers", ["torchcodec"], timeout_s=15)
    assert (finding.status, finding.detail) == ("failed", "the check gave no result within 15 s")
    assert "--timeout" in finding.way_out


@pytest.mark.parametrize("options", [["--timeout", "0"], ["--timeout", "nan"], ["--fix"], ["all"]], ids=" ".join)
def test_wrong_usage_is_exit_code_2(options):
    run = doctor(*options)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


def test_the_clip_is_what_the_generator_draws():
    """The benchmark's first clip without noise, in eight of its frames."""
    clip = replace(benchmark_clip(0)[0], noise=0.0, bursts=())
    frames = [render_frame(clip, int(k))[0] for k in sample_indices(clip.num_frames, NUM_FRAMES)]
    assert np.array_equal(decoded_planes(), to_yuv(np.stack(frames)))
    assert hashlib.sha256(decoded_planes().tobytes()).hexdigest() == PLANES
    assert FILE.stat().st_size < 50_000


def locked_set() -> dict[str, dict[str, object]]:
    """What `tested.json` has to hold: lowest versions of pyproject.toml, versions of both lock files."""
    locks = [(ROOT / f"requirements{of}.txt").read_text(encoding="utf-8") for of in ("", "-toolkits")]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional")[0]
    known = {}
    for name, lowest in re.findall(r'^    "([a-z0-9-]+)>=([\d.]+)[^"]*",', project, re.MULTILINE):
        versions = {v for lock in locks for v in re.findall(rf"^{name}==([\d.]+)", lock, re.MULTILINE)}
        in_order = sorted(versions, key=lambda version: [int(part) for part in version.split(".")])
        known[name] = {"at_least": lowest, "tested": in_order}
    return known


def test_the_versions_are_those_of_the_lock_files():
    assert len(environment.tested_set()) >= 9
    assert environment.tested_set() == locked_set(), "a lock file changed; run: python -m tests.test_doctor"


if __name__ == "__main__":
    rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in locked_set().items())
    (DATA / "tested.json").write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
