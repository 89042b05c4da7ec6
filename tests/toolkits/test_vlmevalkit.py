"""VLMEvalKit with Tango's models, launched as a user would, on the toolkit's own data set classes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.toolkits.datasets import write_hub_cache

ROOT = Path(__file__).parents[2]
KIT = ROOT / "VLMEvalKit"
NAMES = ("Video-MME", "MVBench", "LongVideoBench", "MLVU_MCQ")
RUN = "LLaVA-OneVision-7B-tango-r0.2"
UNREADABLE = {"Video-MME": {0, 4, 8}, "MVBench": {0, 4, 5}, "LongVideoBench": {0, 4}, "MLVU_MCQ": set()}
TIMEOUT_S = 1200  # of a process that hangs


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For the processes: a hub cache with all four data sets, prepared as scripts/prepare_data.sh does it."""
    home = write_hub_cache(tmp_path_factory.mktemp("hub"), unreadable=True)
    (home / "frames").mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TANGO_", "WRAPPER"))}
    variables.pop("OPENAI_API_KEY", None)
    variables |= {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "LMUData": str(home / "frames"),
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{KIT}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    prepared = launch(variables, [sys.executable, "-m", "tango_vlmeval.data", *NAMES])
    assert prepared.returncode == 0, prepared.stdout
    for name, count in zip(NAMES, (9, 8, 6, 6), strict=True):
        assert f"{name}: {count} questions" in prepared.stdout
    return variables


def launch(environment: dict[str, str], command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=environment, cwd=KIT, text=True, timeout=TIMEOUT_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def flags(checkpoints: Path, work_dir: Path, *more: str) -> list[Any]:
    config = ["--config", "run_config/llava_onevision_7b.json", "--pretrained", checkpoints / "llava-ov"]
    return ["run.py", *config, "--work-dir", work_dir, "--method", "tango", "--retain-ratio", "0.2", *more]


def journal(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of all processes."""
    text = "".join(path.read_text() for path in sorted((folder / "journal").glob("*.jsonl")))
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]


def table(folder: Path, name: str, ending: str = "") -> Any:
    import pandas as pd

    (path,) = folder.glob(f"*_{name}_32frame{ending}.xlsx")
    return pd.read_excel(path)


def summary(folder: Path) -> dict[str, Any]:
    datasets = json.loads((folder / "tango_summary.json").read_text())["datasets"]
    return {name: datasets[f"{name}_32frame"] for name in NAMES}


class Killed(NamedTuple):
    """A run that was killed, and ended by the same command."""

    folder: Path
    before: list[dict[str, Any]]  # the journal when it was killed
    output: str


@pytest.fixture(scope="module")
def killed(environment: dict[str, str], checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    work_dir = tmp_path_factory.mktemp("killed")
    command = [sys.executable, *flags(checkpoints, work_dir, "--workers", "1")]
    process = subprocess.Popen(
        list(map(str, command)), env=environment, cwd=KIT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    written = work_dir / RUN / "journal" / "answers-00000.jsonl"
    deadline = time.monotonic() + TIMEOUT_S
    while not (written.is_file() and written.read_bytes().count(b"\n") >= 6):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = journal(work_dir / RUN)
    finished = launch(environment, command)
    assert finished.returncode == 0, finished.stdout
    return Killed(work_dir / RUN, before, finished.stdout)


def test_all_four_data_sets_are_rated(killed: Killed) -> None:
    found = summary(killed.folder)
    predictions: set[str] = set()
    for name, count in zip(NAMES, (9, 8, 6, 6), strict=True):
        scores = table(killed.folder, name, "_score")
        predictions |= set(scores["prediction"])
        assert found[name]["num_questions"] == len(scores) == count
        assert found[name]["num_correct"] == int(scores["score"].sum())
        assert found[name]["accuracy_percent"] == pytest.approx(100 * scores["score"].mean())
        means = found[name]["efficiency"]["means"]
        assert 0 < means["visual_tokens_after"] < 0.3 * means["visual_tokens_before"]
        assert found[name]["efficiency"]["rows"]["Avg_LLM_Prefill_Time (ms)"] > 0
    assert len(predictions & set("ABCD")) > 1, "answers that are all the same show nothing"
    rating = json.loads((killed.folder / f"{RUN}_Video-MME_32frame_rating.json").read_text())
    assert float(rating["overall"]["overall"]) == pytest.approx(found["Video-MME"]["accuracy_percent"] / 100, abs=1e-3)
    for group in ("short", "medium", "long"):
        percent = found["Video-MME"]["groups_percent"][group]
        assert float(rating[group]["overall"]) == pytest.approx(percent / 100, abs=1e-3)
    rating = json.loads((killed.folder / f"{RUN}_MVBench_32frame_rating.json").read_text())
    assert rating["overall"][:2] == [found["MVBench"]["num_correct"], 8]
    assert f"| {RUN} |" in killed.output


def test_a_killed_run_goes_on_where_it_ended(killed: Killed) -> None:
    whole = journal(killed.folder)
    assert whole[: len(killed.before)] == killed.before
    answered = [line["key"] for line in whole if line["error"] is None]
    assert len(answered) == len(set(answered)) == 29 - 8, "a finished question was answered twice"
    resumed = sum(found["efficiency"]["sums"]["resumed"] for found in summary(killed.folder).values())
    assert resumed == sum(line["error"] is None for line in killed.before)
    assert 0 < resumed < 21
    assert not list(killed.folder.glob("*.pkl"))


def test_unreadable_videos_are_reported_and_wrong(killed: Killed) -> None:
    for name, found in summary(killed.folder).items():
        scores = table(killed.folder, name, "_score").set_index("index")
        assert {one["index"] for one in found["failures"]} == UNREADABLE[name]
        assert found["num_failures"] == found["efficiency"]["sums"]["failures"] == len(UNREADABLE[name])
        assert all("cannot read" in one["error"] or "failed to read" in one["error"] for one in found["failures"])
        for index in UNREADABLE[name]:
            assert scores.loc[index, "prediction"] == "[Z] failed"
            assert scores.loc[index, "score"] == 0
        assert not any(scores["prediction"].drop(list(UNREADABLE[name])).str.startswith("[Z]"))


def test_two_processes_give_the_table_of_one(
    killed: Killed, environment: dict[str, str], checkpoints: Path, tmp_path: Path
) -> None:
    """The one was killed as well, so this also holds a resumed run against one that was left alone; and its cache was
    dynamic, theirs static."""
    clips = list(Path(environment["HF_HOME"]).rglob("*_processed.mp4"))
    assert len(clips) == 3
    for clip in clips:
        clip.unlink()
    torchrun, static = Path(sys.executable).with_name("torchrun"), ("--option", "static_cache=on")
    done = launch(environment, [torchrun, "--standalone", "--nproc-per-node=2", *flags(checkpoints, tmp_path, *static)])
    assert done.returncode == 0, done.stdout
    one, two = summary(killed.folder), summary(tmp_path / RUN)
    for name in NAMES:
        assert table(killed.folder, name, "_score").equals(table(tmp_path / RUN, name, "_score"))
        for field in ("accuracy_percent", "groups_percent", "mean_of_groups_percent", "failures"):
            assert one[name][field] == two[name][field]
        sums = two[name]["efficiency"]["sums"]
        assert sums["samples"] == len(table(tmp_path / RUN, name))
        assert len(sums["elapsed_ms"]) == 2
    assert json.loads((tmp_path / RUN / "run.json").read_text())["settings"]["static_cache"] is True
    assert json.loads((tmp_path / RUN / "journal" / "config.json").read_text())["static_cache"] is True
    answered = [line["key"] for line in journal(tmp_path / RUN) if line["error"] is None]
    assert len(answered) == len(set(answered)) == 29 - 8
    assert len(list((tmp_path / RUN / "journal").glob("answers-*.jsonl"))) == 2
    assert len(list(Path(environment["HF_HOME"]).rglob("*_processed.mp4"))) == 3
    assert not list(Path(environment["HF_HOME"]).rglob(".*-mv*.mp4*")), "unfinished clips were left"


def test_settings_are_kept_and_others_refused(killed: Killed, environment: dict[str, str], checkpoints: Path) -> None:
    stored = json.loads((killed.folder / "tango_args.json").read_text())
    method = stored["settings"]["model"]["method"]
    assert (method["method"], method["options"]["retention_ratio"]) == ("tango", 0.2)
    assert "--retain-ratio 0.2" in stored["command"]
    others = flags(checkpoints, killed.folder.parent, "--option", "max_new_tokens=5")
    refused = launch(environment, [sys.executable, *others])
    assert refused.returncode == 2
    assert "holds results of other settings" in refused.stdout
    assert "Choose another --work-dir" in refused.stdout
    assert json.loads((killed.folder / "tango_args.json").read_text()) == stored


def test_an_unknown_method_is_refused_at_once(environment: dict[str, str], checkpoints: Path, tmp_path: Path) -> None:
    refused = launch(environment, [sys.executable, *flags(checkpoints, tmp_path / "out", "--method", "tanga")])
    assert refused.returncode == 2
    assert refused.stdout.startswith(
        "run.py: error: unknown method 'tanga'. Did you mean 'tango'? Known: cdpruner, dart, "
    )
    assert "none" in refused.stdout
    assert "vidcom2" in refused.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "checkpoint", "variables", "expected"),
    [
        (
            "run_eval_ov.sh",
            "llava-ov",
            {"METHODS": "uniform tango", "RATIOS": "0.1 0.2", "LIMIT": "2", "EXTRA": "--batch-size 2"},
            [f"LLaVA-OneVision-7B-{method}-r{ratio}-limit2" for method in ("uniform", "tango") for ratio in (0.1, 0.2)],
        ),
        (
            "run_eval_video.sh",
            "llava-video",
            {"METHODS": "tango", "RATIOS": "0.2", "PRUNED_LAYER": "2"},
            ["LLaVA-Video-7B-tango-m0.2-fastv-merge2-limit1"],
        ),
        ("run_eval_qwen.sh", "qwen2.5-vl", {"METHODS": "none"}, ["Qwen2.5-VL-7B-none-limit1"]),
    ],
)
def test_scripts_run_to_the_end(
    script: str,
    checkpoint: str,
    variables: dict[str, str],
    expected: list[str],
    environment: dict[str, str],
    checkpoints: Path,
    tmp_path: Path,
) -> None:
    variables = {"MODEL": str(checkpoints / checkpoint), "LIMIT": "1", "DATASETS": "MLVU_MCQ", **variables}
    done = launch({**environment, **variables, "OUTPUT": str(tmp_path)}, ["bash", script, "--reuse"])
    assert done.returncode == 0, done.stdout
    runs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/tango_summary.json")}
    assert sorted(runs) == sorted(expected)
    rows = done.stdout.splitlines()[-len(expected) :]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in sorted(expected)]
    for run in runs.values():
        ((_, found),) = run["datasets"].items()
        assert (found["num_questions"], found["num_failures"]) == (int(variables["LIMIT"]), 0)
        means = found["efficiency"]["means"]
        kept = means["visual_tokens_after"] / means["visual_tokens_before"]
        assert kept == 1 if run["settings"]["method"]["method"] == "none" else kept < 0.35


def test_scripts_explain_themselves(environment: dict[str, str]) -> None:
    for script in ("run_eval_ov.sh", "run_eval_video.sh", "run_eval_qwen.sh", "../scripts/prepare_data.sh"):
        shown = launch(environment, ["bash", script, "-h"])
        assert shown.returncode == 0
        assert shown.stdout.startswith("Usage: ")
    unknown = launch(environment, ["bash", "../scripts/prepare_data.sh", "Video-MMO"])
    assert (unknown.returncode, "unknown data set 'Video-MMO'" in unknown.stdout) == (2, True)
