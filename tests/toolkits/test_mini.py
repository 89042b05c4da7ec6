"""tango-mini's benchmark in both toolkits, launched as a user would: the same clips, questions, answers and scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tango import mini
from tango.mini.benchmark import benchmark_questions, cache_name
from tango.report.readers import read_results
from tests.clips import decode_everything
from tests.toolkits import lmms

ROOT = Path(__file__).parents[2]
QUESTIONS = list(benchmark_questions(2))
RUNS = {"tango-mini-none": 1.0, "tango-mini-tango-r0.1": 0.1, "tango-mini-tango-r0.2": 0.2}
NAMES = {"TangoMini": "tango_mini", "TangoMini-blank": "tango_mini_blank"}


class Places(NamedTuple):
    home: Path  # HF_HOME and LMUData of both toolkits
    weights: Path
    outputs: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """The published weights; in a checkout without them, the same model with random ones."""
    base = tmp_path_factory.mktemp("mini")
    weights = mini.folder()
    if not (weights / "config.json").exists():
        from tango.lab.training.train import write_checkpoint
        from tango.mini.model import make_model

        weights = base / "weights"
        write_checkpoint(make_model(0), weights)
    (base / "home").mkdir()
    (base / "LMUData").mkdir()
    return Places(base / "home", weights, base / "outputs")


def run_vlmevalkit(places: Places) -> str:
    command = [
        sys.executable, "run.py", "--config", "run_config/tango_mini.json", "--pretrained", str(places.weights),
        "--methods", "none", "tango", "--ratios", "0.1", "0.2", "--data-option", "num_clips=2",
        "--work-dir", str(places.outputs),
    ]  # fmt: skip
    environment = lmms.environ(
        places.home.parent, LMUData=str(places.home.parent / "LMUData"), PYTHONPATH=f"{ROOT}:{ROOT / 'VLMEvalKit'}"
    )
    done = subprocess.run(
        command, cwd=ROOT / "VLMEvalKit", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def printed(places: Places) -> str:
    """What one run of VLMEvalKit over three models and two data sets printed."""
    return run_vlmevalkit(places)


def table(places: Places, run: str, name: str, ending: str = "_score") -> Any:
    import pandas as pd  # comes with the toolkits

    return pd.read_excel(places.outputs / run / f"{run}_{name}_16frame{ending}.xlsx")


def test_one_run_evaluates_every_method_at_every_ratio(places: Places, printed: str) -> None:
    for number, (run, ratio) in enumerate(RUNS.items(), start=1):
        assert f"== {number} of 3: {run}" in printed
        datasets = json.loads((places.outputs / run / "tango_summary.json").read_text())["datasets"]
        assert set(datasets) == {f"{name}_16frame" for name in NAMES}
        for found in datasets.values():
            assert (found["num_questions"], found["num_failures"]) == (len(QUESTIONS), 0)
            means = found["efficiency"]["means"]
            kept = means["visual_tokens_after"] / means["visual_tokens_before"]
            assert kept == 1 if ratio == 1 else 0 < kept < ratio + 0.02


@pytest.mark.usefixtures("printed")
def test_scores_are_those_of_the_words(places: Places) -> None:
    for run in RUNS:
        for name in NAMES:
            scores = table(places, run, name)
            assert list(scores["question"]) == [question["text"] for question in QUESTIONS]
            said, answers = scores["prediction"].astype(str), scores["answer"].astype(str)
            assert list(scores["score"]) == [int(a.lower() == b.lower()) for a, b in zip(said, answers, strict=True)]
            rating = json.loads((places.outputs / run / f"{run}_{name}_16frame_rating.json").read_text())
            assert rating["overall"] == pytest.approx(100 * scores["score"].mean(), abs=1e-3)
            assert rating["letter"] == pytest.approx(100 * scores["score"][scores["task_type"] == "letter"].mean())


@pytest.mark.usefixtures("printed")
def test_the_report_reads_them(places: Places) -> None:
    runs = read_results([places.outputs]).runs
    assert Counter(run.benchmark.name for run in runs) == {"TangoMini": 3, "TangoMini-blank": 3}
    assert {run.model for run in runs} == {"tango-mini"}
    for run in runs:
        assert (run.partial, run.num_failed, run.num_frames) == (True, 0, 16)
        assert len({question.video_id for question in run.questions}) == 2
        assert {question.group for question in run.questions} == {question["kind"] for question in QUESTIONS}
        found = json.loads((run.source / "tango_summary.json").read_text())["datasets"][f"{run.benchmark.name}_16frame"]
        assert sum(question.correct for question in run.questions) == found["num_correct"]
        lines = [json.loads(line) for line in (run.source / "records.jsonl").read_text().splitlines()]
        assert all(0 < line["tokens_after"] <= line["tokens_before"] for line in lines)
        assert run.tokens_after == pytest.approx(found["efficiency"]["means"]["mean_visual_tokens"])


@pytest.mark.usefixtures("printed")
def test_what_is_finished_is_not_asked_again(places: Places) -> None:
    """One table is gone; its answers are in the journal."""
    run = "tango-mini-tango-r0.1"
    before, journal = table(places, run, "TangoMini"), places.outputs / run / "journal" / "answers-00000.jsonl"
    answered = journal.read_bytes()
    for ending in ("", "_score"):
        (places.outputs / run / f"{run}_TangoMini_16frame{ending}.xlsx").unlink()
    again = run_vlmevalkit(places)
    assert f"{len(QUESTIONS)} samples, 0 failed, {len(QUESTIONS)} from the journal" in again
    assert journal.read_bytes() == answered
    assert table(places, run, "TangoMini").equals(before)


@pytest.fixture(scope="module")
def lmms_run(places: Places) -> lmms.Run:
    """lmms-eval on its tasks of the same benchmark, cut to the same clips."""
    python_path = f"{ROOT}:{ROOT / 'lmms-eval'}"
    where = [sys.executable, "-m", "tango_lmms_eval.tasks"]
    environment = lmms.environ(places.home.parent, PYTHONPATH=python_path)
    folder = subprocess.run(where, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    output = places.home.parent / "lmms"
    arguments = [
        sys.executable, "-m", "lmms_eval", "--model", "llava_onevision", "--tasks", ",".join(NAMES.values()),
        "--model_args", f"pretrained={places.weights},retain_ratio=0.1", "--include_path", folder,
        "--limit", str(len(QUESTIONS)), "--log_samples", "--output_path", str(output),
    ]  # fmt: skip
    done = lmms.run(arguments, places.home.parent, output, WRAPPER="tango", PYTHONPATH=python_path)
    assert done.code == 0, done.err
    return done


@pytest.mark.usefixtures("printed", "lmms_run")
def test_both_toolkits_show_the_same_clips(places: Places) -> None:
    theirs, ours = (folder / cache_name() for folder in (places.home, places.home.parent / "LMUData"))
    clips = {f"{kind}_{i:04d}.mp4" for kind in ("clip", "blank") for i in range(2)}
    assert {path.name for path in theirs.iterdir()} == {".lock", *clips}
    for name in clips:  # the same pixels; an encoder may choose other bytes for them
        seen = [decode_everything(folder / name) for folder in (theirs, ours)]
        assert np.array_equal(*seen)


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("name", NAMES)
def test_both_toolkits_ask_and_score_alike(name: str, places: Places, lmms_run: lmms.Run) -> None:
    scores, samples = table(places, "tango-mini-tango-r0.1", name), lmms_run.samples(NAMES[name])
    assert [sample["input"].split("\n")[-1] for sample in samples] == list(scores["question"])
    assert [sample["target"] for sample in samples] == list(scores["answer"].astype(str))
    assert [sample["filtered_resps"] for sample in samples] == list(scores["prediction"].astype(str))
    results = lmms_run.results()["results"][NAMES[name]]
    assert results["accuracy,none"] == pytest.approx(100 * scores["score"].mean())
    for kind, of_kind in scores.groupby("task_type"):
        assert results[f"{kind},none"] == pytest.approx(100 * of_kind["score"].mean())


def test_the_report_reads_lmms_eval_too(lmms_run: lmms.Run) -> None:
    runs = read_results([lmms_run.folder]).runs
    assert {run.benchmark.name for run in runs} == set(NAMES)
    results = lmms_run.results()["results"]
    for run in runs:
        assert (run.partial, run.limited, run.num_failed) == (True, True, 0)
        assert len({question.video_id for question in run.questions}) == 2
        right = sum(question.correct for question in run.questions)
        assert 100 * right / len(run.questions) == pytest.approx(results[NAMES[run.benchmark.name]]["accuracy,none"])
        assert run.tokens_after is not None
        assert run.tokens_before is not None
        assert 0 < run.tokens_after < 0.12 * run.tokens_before


def test_the_script_explains_itself() -> None:
    script = ROOT / "scripts" / "mini.sh"
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(flag in shown for flag in ("--full", "--clips", "--methods", "--ratios", "--output"))
    wrong = subprocess.run(["bash", script, "--clip", "3"], capture_output=True, text=True)
    assert (wrong.returncode, "unknown argument --clip" in wrong.stderr) == (2, True)
