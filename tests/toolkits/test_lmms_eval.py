"""lmms-eval, launched as a user launches it, with tiny checkpoints and real videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tango.report.readers import read_results
from tests.toolkits import lmms
from tests.toolkits.checkpoints import CLIPS

ROWS = (
    "Total_runtime (s)", "Total_GPU_runtime (s)", "Peak_mem (GB)", "Avg_ViT_Time (ms)", "Avg_Other_Time (ms)",
    "Avg_LLM_Prefill_Time (ms)", "Avg_Total_TTFT (ms)", "Avg_Decoding_Throughput (token/s)",
)  # fmt: skip
READABLE = len(CLIPS) * len(lmms.QUESTIONS)
PROFILE = Path(__file__).parents[2] / "lmms-eval" / "run_profile.sh"
SAMPLES = READABLE + len(lmms.QUESTIONS) + 1  # three about a broken file, one about a missing one


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """A working directory with Video-MME in it, unreadable videos included."""
    return lmms.write_videomme(tmp_path_factory.mktemp("lmms"), clips, broken=True)


@pytest.fixture(scope="module")
def readme_run(root: Path, checkpoints: Path) -> lmms.Run:
    """The README's command to its end, in one process."""
    output = root / "readme"
    arguments = lmms.command(
        ["accelerate", "launch", "--num_processes=1"], "llava_onevision", checkpoints / "llava-ov", output
    )
    done = lmms.run(arguments, root, output, WRAPPER="tango")
    assert done.code == 0, done.err
    return done


def test_table_results_and_samples_of_the_readmes_command(readme_run: lmms.Run):
    written = readme_run.efficiency()
    assert tuple(written["rows"]) == ROWS
    assert all(value > 0 for value in written["rows"].values())
    for name, value in written["rows"].items():
        assert f"| {name} | {value:.2f} |" in readme_run.out
    assert "peak RSS" in readme_run.out
    assert written["config"]["method"]["method"] == "tango"
    assert written["config"]["method"]["options"]["retention_ratio"] == 0.1
    assert written["config"]["num_frames"] == 8
    assert set(written["environment"]["versions"]) >= {"tango", "torch", "transformers", "python"}
    means = written["means"]
    assert means["visual_tokens_before"] == 8 * 16
    assert 8 * 2 <= means["visual_tokens_after"] < 0.2 * 8 * 16  # at least ceil(0.1 * 16) of each frame

    results, samples = readme_run.results(), readme_run.samples()
    assert results["config"]["model_backend"].startswith("tango_lmms_eval.models.LlavaOneVision")
    assert results["throughput"]["avg_ttft_ms"] == pytest.approx(means["ttft_ms"])
    assert means["ttft_ms"] == pytest.approx(written["rows"]["Avg_Total_TTFT (ms)"] + means["between_ms"])
    assert results["throughput"]["avg_visual_tokens_after"] == pytest.approx(means["visual_tokens_after"])
    scores = [sample["videomme_perception_score"]["score"] for sample in samples]
    assert results["results"]["videomme"]["videomme_perception_score,none"] == pytest.approx(
        100 * sum(scores) / SAMPLES, abs=0.1
    )
    letters = readme_run.answers()[:READABLE]
    assert set(letters) <= set("ABCD")
    assert len(set(letters)) > 1
    assert [float(letter == "ABCD"[i % 4]) for i, letter in enumerate(letters)] == scores[:READABLE]


def test_unreadable_videos_are_reported_and_count_as_wrong(readme_run: lmms.Run):
    failed = readme_run.samples()[READABLE:]
    assert len(failed) == SAMPLES - READABLE
    assert {sample["filtered_resps"] for sample in failed} == {"[no answer]"}
    assert {sample["videomme_perception_score"]["score"] for sample in failed} == {0.0}
    assert readme_run.efficiency()["sums"]["failures"] == len(failed)
    assert f"{SAMPLES} samples, {len(failed)} failed" in readme_run.out
    assert "broken.mp4" in readme_run.err
    assert "missing.mp4 does not exist" in readme_run.err
    (run,) = read_results([readme_run.folder]).runs
    assert (len(run.questions), run.num_failed) == (SAMPLES, len(failed))


def test_two_processes_killed_and_started_again_answer_like_one(root: Path, checkpoints: Path, readme_run: lmms.Run):
    output = root / "resumed"
    launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes=2", f"--main_process_port={lmms.free_port()}"]
    arguments = lmms.command(launcher, "llava_onevision", checkpoints / "llava-ov", output)
    settings = {"WRAPPER": "tango", "ACCELERATE_USE_CPU": "true"}
    lmms.run_until(arguments, root, lambda: len(journalled(output)) >= 3, **settings)
    before = journalled(output)
    assert 3 <= len(before) < READABLE
    assert not list(output.rglob("*_results.json"))

    again = lmms.run(arguments, root, output, **settings)
    assert again.code == 0, again.err
    assert again.answers() == readme_run.answers()
    assert again.results()["results"]["videomme"] == readme_run.results()["results"]["videomme"]
    sums = again.efficiency()["sums"]
    assert (sums["samples"], sums["failures"]) == (SAMPLES, SAMPLES - READABLE)
    assert sums["resumed"] == len(before)
    assert len(sums["elapsed_ms"]) == 2
    after = journalled(output)
    assert len(after) == len(set(after)) == READABLE  # nothing was answered twice, by either process
    assert len(list(output.rglob("answers-*.jsonl"))) == 2
    one, two = (read_results([run.folder]).runs[0] for run in (readme_run, again))
    assert set(two.questions) == set(one.questions)
    assert (two.num_failed, two.tokens_before, two.tokens_after) == (
        one.num_failed,
        one.tokens_before,
        one.tokens_after,
    )


def journalled(output: Path) -> list[str]:
    """Keys of the answers on the disk, those without an answer and half a line at the end left out."""
    keys = []
    for path in output.rglob("answers-*.jsonl"):
        for line in path.read_text().split("\n")[:-1]:
            record = json.loads(line)
            keys += [record["key"]] if record["error"] is None else []
    return keys


@pytest.fixture(scope="module")
def several(root: Path, checkpoints: Path) -> dict[str, lmms.Run]:
    """Other models and settings, one after the other in a single process, which lmms-eval's --config can do."""
    runs = {
        "batch of 2": ("llava_onevision", "llava-ov", 2, {}),
        "static cache": ("llava_onevision", "llava-ov", 2, {"static_cache": "true"}),
        "full": ("llava_onevision", "llava-ov", 1, {"wrapper": "none", "workers": 0}),
        "video": ("llava_vid", "llava-video", 1, {"wrapper": "fastvid", "retain_ratio": 0.3}),
        "qwen": ("qwen2_5_vl", "qwen2.5-vl", 1, {"retain_ratio": 0.5, "similarity_threshold": 0.7}),
    }
    described = [
        {
            "model": model,
            "model_args": lmms.model_args(checkpoints / checkpoint, **changes),
            "tasks": "videomme",
            "batch_size": batch_size,
            "limit": READABLE,
            "log_samples": True,
            "output_path": str(root / name),
        }
        for name, (model, checkpoint, batch_size, changes) in runs.items()
    ]
    (root / "runs.yaml").write_text(json.dumps(described))
    arguments = [sys.executable, "-m", "lmms_eval", "--config", "runs.yaml"]
    done = lmms.run(arguments, root, root, WRAPPER="tango", TANGO_SIMILARITY_THRESHOLD="0.6")
    assert done.code == 0, done.err
    return {name: lmms.Run(done.code, done.out, done.err, root / name) for name in runs}


def test_batches_give_the_answers_of_single_questions(several: dict[str, lmms.Run], readme_run: lmms.Run):
    assert several["batch of 2"].efficiency()["config"]["batch_size"] == 2
    assert several["batch of 2"].efficiency()["config"]["method"]["options"]["segment_threshold"] == 0.6
    assert several["batch of 2"].answers() == readme_run.answers()[:READABLE]


def test_a_static_cache_gives_the_same_answers_and_is_on_record(several: dict[str, lmms.Run], readme_run: lmms.Run):
    run = several["static cache"]
    assert run.efficiency()["config"]["static_cache"] is True
    assert several["batch of 2"].efficiency()["config"]["static_cache"] is False
    (record,) = run.folder.rglob("*_run.json")
    assert json.loads(record.read_text())["settings"]["static_cache"] is True
    assert run.answers() == readme_run.answers()[:READABLE]


def test_full_tokens_keep_all_and_answer_otherwise(several: dict[str, lmms.Run], readme_run: lmms.Run):
    means = several["full"].efficiency()["means"]
    assert means["visual_tokens_before"] == means["visual_tokens_after"] == 8 * 16
    assert several["full"].answers() != readme_run.answers()[:READABLE]


@pytest.mark.parametrize(("name", "backend"), [("video", "LlavaVideo"), ("qwen", "Qwen25VLChat")])
def test_the_other_models(several: dict[str, lmms.Run], name: str, backend: str):
    run = several[name]
    assert f"tango_lmms_eval.models.{backend} " in run.results()["config"]["model_backend"]
    assert set(run.answers()) <= set("ABCD")
    means, config = run.efficiency()["means"], run.efficiency()["config"]
    assert 0 < means["visual_tokens_after"] < means["visual_tokens_before"]
    options = config["method"]["options"]
    if name == "video":
        assert (config["method"]["method"], options["retention_ratio"]) == ("fastvid", 0.3)
        assert config["time_instruction"] == "frames"
    else:  # what the command says goes before the environment
        assert (config["method"]["method"], options["segment_threshold"]) == ("tango", 0.7)


def test_profile_script_goes_through_methods_and_stops_at_an_unknown_one(root: Path, checkpoints: Path):
    output = root / "profile"
    settings = {
        "METHODS": "tango tangos", "RATIOS": "0.2", "LIMIT": "4", "BATCH_SIZE": "2", "OUTPUT": str(output),
        "MODEL": str(checkpoints / "llava-ov"), "MODEL_ARGS": "max_frames_num=8",
    }  # fmt: skip
    done = lmms.run(["bash", str(PROFILE)], root, output, **settings)
    written = lmms.Run(0, "", "", output / "tango-0.2").efficiency()
    assert written["config"]["method"]["options"]["retention_ratio"] == 0.2
    assert written["config"]["batch_size"] == 2
    assert written["sums"]["samples"] == 4

    assert done.code != 0
    messages = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1
    assert "unknown method 'tangos'" in messages[0]
    assert "holitom-merge, none, prunevid" in messages[0]
    assert not list((output / "tangos-0.2").iterdir())


def test_profile_script_explains_itself():
    shown = subprocess.run(["bash", str(PROFILE), "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in ("METHODS", "RATIOS", "NUM_PROCESSES", "--num_machines"))
    for variable, value, message in (
        ("FAMILY", "llava", "known: llava_onevision, llava_vid, qwen2_5_vl"),
        ("MODEL", "llava_vid", "MODEL=llava_vid names no checkpoint, which MODEL is; say FAMILY=llava_vid"),
        ("PRETRAINED", "mine", "say MODEL=mine in place of PRETRAINED"),
    ):
        environment = {**os.environ, variable: value}
        wrong = subprocess.run(["bash", str(PROFILE)], env=environment, capture_output=True, text=True)
        assert (wrong.returncode, message in wrong.stderr) == (2, True)
