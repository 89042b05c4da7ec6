"""Evaluation: files that survive a crash, intervals that know about clips, and the command around it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import tango
from tango.cli import main
from tango.errors import TangoError
from tango.lab.similarity import similarity, static_share
from tango.lab.training.train import write_checkpoint
from tango.mini.benchmark import benchmark_clip, clip_file
from tango.mini.evaluation import Results, ask_model, clustered, evaluate, summarise
from tango.mini.model import make_model
from tango.report.records import read_records, run_file

SIZES = {"vision_width": 32, "vision_layers": 1, "width": 32, "layers": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "model"
    write_checkpoint(make_model(0, **SIZES), folder)
    return folder


def test_every_question_of_a_clip_is_asked_and_judged(checkpoint, tmp_path):
    model, processor = tango.load(checkpoint)
    with tango.prune(model, "uniform", retention_ratio=0.25):
        (records,) = evaluate(model, processor, tmp_path, [2], num_frames=4)
    questions = benchmark_clip(2)[1]
    assert [record["question_id"] for record in records] == [f"0002-{q.kind}" for q in questions]
    for said, asked in zip(records, questions, strict=True):
        assert (said["clip"], said["video_id"], said["benchmark"]) == (2, "clip_0002", "TangoMini")
        assert (said["tokens_before"], said["tokens_after"]) == (196, 49)
        assert (said["group"], said["answer"], said["failed"]) == (asked.kind, asked.answer, False)
        assert said["choice"] in asked.options
        assert said["choice_correct"] == (said["choice"] == asked.answer)
        assert said["correct"] == (said["text"] == asked.answer)


@pytest.mark.parametrize(("method", "times"), [("uniform", "once"), ("cdpruner", "often"), ("fastv", "often")])
def test_a_video_is_pruned_once_if_its_questions_do_not_matter(tmp_path, method, times):
    write_checkpoint(make_model(0, **{**SIZES, "layers": 3}), tmp_path / "model")
    model, processor = tango.load(tmp_path / "model")
    runs, questions = [], benchmark_clip(2)[1]
    with tango.prune(model, method, retention_ratio=0.8):
        expected = [
            ask_model(model, processor, tango.read_video(clip_file(tmp_path, 2), num_frames=4), question)
            for question in questions
        ]
        blocks = model.model.vision_tower.encoder.layers
        hook = blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
        (records,) = evaluate(model, processor, tmp_path, [2], num_frames=4)
        hook.remove()
    assert len(runs) == (1 if times == "once" else len(questions))
    assert [{name: said[name] for name in asked} for said, asked in zip(records, expected, strict=True)] == expected


def test_inside_the_llm_tokens_are_counted_in_the_mean_over_its_layers(tmp_path):
    write_checkpoint(make_model(0, **{**SIZES, "layers": 3}), tmp_path / "model")
    model, processor = tango.load(tmp_path / "model")
    inside = tango.build_layer_pruner("fastv-merge", layer=1)
    with tango.prune(model, "uniform", retention_ratio=0.5, layer_pruner=inside) as pruning:
        ((*_, record),) = evaluate(model, processor, tmp_path, [2], num_frames=4)
        stats = pruning.stats
    assert record["tokens_entering"] == stats.tokens_after == 98
    assert record["tokens_after"] == pytest.approx(196 * stats.layer.mean_retention_ratio)
    assert record["tokens_after"] < 98


def test_controls_show_something_else(checkpoint, tmp_path, monkeypatch):
    import tango.mini.evaluation as module

    model, processor = tango.load(checkpoint)
    shown = {}
    for control in ("none", "blank", "other"):

        def look(_model, _processor, video, _question, control=control):
            shown[control] = video.frames.clone()
            return {}

        monkeypatch.setattr(module, "ask_model", look)
        list(evaluate(model, processor, tmp_path, [0], num_frames=3, control=control))
    assert (shown["blank"] == 127).all()
    assert shown["none"].float().std() > 10
    following = tango.read_video(tmp_path / "clip_0001.mp4", num_frames=3).frames
    assert (shown["other"] == following).all()


RUN = {"model": "m", "method": {"method": "tango"}, "num_frames": None, "settings": {"dtype": "auto"}}


def answered(index: int) -> list[dict]:
    """Records of a whole clip."""
    about = {"benchmark": "TangoMini", "clip": index, "video_id": str(index), "correct": True}
    return [{**about, "question_id": f"{index}-{question.kind}"} for question in benchmark_clip(index)[1]]


def test_results_continue_after_a_crash(tmp_path):
    file = tmp_path / "results.jsonl"
    Results(file, RUN).add(answered(0))
    whole = file.read_bytes()
    with file.open("a") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in answered(1)[:2])
        lines.write('{"clip": 1, "ques')  # what a crash may leave
    (run,), (note,) = read_records(file)
    assert len(run.questions) == len(answered(0)) + 2
    assert "cut off" in note
    results = Results(file, {**RUN, "date": "later"})
    assert (results.records, results.clips) == (answered(0), {0})
    assert file.read_bytes() == whole
    results.add(answered(1))
    assert Results(file, RUN).records == answered(0) + answered(1)


def test_results_of_something_else_are_left_alone(tmp_path):
    file = tmp_path / "results.jsonl"
    Results(file, RUN).add(answered(0))
    before = file.read_bytes()
    with pytest.raises(TangoError, match=r"results of another run \(method: got .*uniform.*, there .*tango"):
        Results(file, {**RUN, "method": {"method": "uniform"}})
    run_file(file).unlink()
    with pytest.raises(TangoError, match=r"it has no results\.run\.json, as in the form of an earlier release"):
        Results(file, RUN)
    assert file.read_bytes() == before


def test_intervals_count_clips_not_questions():
    """Ten answers of a clip that are all right or all wrong say as much as one."""
    rng = np.random.default_rng(0)
    once = [[{"right": bool(r)}] for r in rng.random(200) < 0.7]
    accuracy, margin = clustered([10 * of_clip for of_clip in once], "right")
    assert accuracy == pytest.approx(clustered(once, "right")[0])
    assert margin == pytest.approx(clustered(once, "right")[1])
    share = accuracy / 100
    assert margin == pytest.approx(196 * math.sqrt(share * (1 - share) / 199))
    assert math.isnan(clustered(once[:1], "right")[1])


def test_the_summary_weighs_questions_equally():
    def answers(clip: int, kind: str, *right: bool) -> list[dict[str, object]]:
        tokens = {"tokens_before": 10, "tokens_entering": (5, 1)[clip]}
        return [{"clip": clip, "group": kind, "choice_correct": r, "correct": False, **tokens} for r in right]

    summary = summarise(answers(0, "color", True, True) + answers(0, "count", False) + answers(1, "color", False))
    assert summary["clips"] == 2
    assert summary["all"]["accuracy"] == 50
    assert summary["color"] == {"questions": 3, "accuracy": pytest.approx(200 / 3), "margin": pytest.approx(
        summary["color"]["margin"]), "exact": 0}  # fmt: skip
    assert summary["count"]["questions"] == 1
    assert summary["tokens_kept"] == pytest.approx(0.3)
    assert "motion" not in summary


def test_similarity_is_one_where_a_picture_stands_still(checkpoint):
    model, _ = tango.load(checkpoint)
    frames = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    found = similarity(model, torch.from_numpy(frames[[0, 0, 1]]))
    assert found.shape == (2, 49)
    assert found[0] == pytest.approx(np.ones(49), abs=1e-4)
    assert found[1].max() < 0.9999


def test_the_static_share_is_what_averaging_over_segments_saves():
    table = np.ones((4, 10), np.float32)
    assert static_share(table) == pytest.approx(0.8)  # 5 frames become 1
    table[2] = 0  # a cut: 3 + 2 frames become 1 + 1
    assert static_share(table) == pytest.approx(0.6)
    table[:, :5] = 0  # and half of the places change all the time
    assert static_share(table) == pytest.approx(0.3)
    assert static_share(np.full((4, 10), 0.7, np.float32)) == 0  # similar enough for a segment, not to be static


def test_the_similarity_command_prints_quantiles(checkpoint, capsys):
    assert main(["mini", "similarity", "--model", str(checkpoint), "--num-clips", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    quantiles = list(record["cosine_percentiles"].values())
    assert quantiles == sorted(quantiles)
    assert record["static_share_min"] == record["static_share_max"] == record["static_share_mean"] <= 15 / 16


def test_the_command_writes_results_and_a_table(checkpoint, tmp_path, capsys):
    output = tmp_path / "results.jsonl"
    command = ["mini", "evaluate", "--model", str(checkpoint), "--num-frames", "4", "--clips", str(tmp_path / "clips")]
    command += ["--method", "tango", "--retention-ratio", "0.2", "--output", str(output)]
    assert main([*command, "--num-clips", "1"]) == 0
    table = capsys.readouterr().out
    assert "method tango" in table
    assert len(output.read_text().splitlines()) == len(benchmark_clip(0)[1])
    assert main([*command, "--num-clips", "2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["clips"] == 2
    assert summary["all"]["questions"] == sum(len(benchmark_clip(i)[1]) for i in range(2))
    assert main([*command[:-2], "--retention-ratio", "0.5", "--output", str(output), "--num-clips", "2"]) == 2
    assert "results of another run" in capsys.readouterr().err
    assert main(["runs", "--results", str(output), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["model"], line["benchmark"], line["method"], line["retention_ratio"]) == (
        "model", "TangoMini", "tango", 0.2,
    )  # fmt: skip
    assert line["accuracy"] == pytest.approx(summary["all"]["exact"], abs=1e-3)
    assert line["interval"][0] <= line["accuracy"] <= line["interval"][1]
    assert line["tokens_percent"] == pytest.approx(100 * summary["tokens_kept"], abs=1e-3)
    assert (line["num_questions"], line["num_clips"]) == (summary["all"]["questions"], 2)
    assert (line["num_expected"], line["num_failed"]) == (1903, 0)
    assert set(line["groups"]) == {question.kind for i in range(2) for question in benchmark_clip(i)[1]}


def test_without_a_file_there_is_the_table_alone(checkpoint, tmp_path, capsys):
    command = ["mini", "evaluate", "--model", str(checkpoint), "--num-frames", "4", "--num-clips", "1"]
    assert main([*command, "--method", "none", "--clips", str(tmp_path)]) == 0
    assert "method none, 100.0 % of the visual tokens kept, 1 clips" in capsys.readouterr().out


def test_the_clips_command_writes_clips_and_questions(tmp_path, capsys):
    assert main(["mini", "clips", str(tmp_path / "clips"), "--num-clips", "2"]) == 0
    made = {f.name for f in (tmp_path / "clips").iterdir() if f.name != ".lock"}
    assert made == {"clip_0000.mp4", "clip_0001.mp4", "questions.jsonl"}
    captured = capsys.readouterr()
    assert "questions.jsonl" in captured.out
    assert "2/2" in captured.err  # how far it is, also where stderr is no terminal
