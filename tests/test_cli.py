"""The `tango` command as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tango.cli import main
from tango.commands import answer as commands_answer
from tango.methods import (
    available_layer_pruners,
    available_pruners,
    available_tower_mergers,
    build_layer_pruner,
    build_pruner,
    layer_pruner_class,
    pruner_class,
)
from tango.toy import write_checkpoint, write_clip
from tests import tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_checkpoint(folder / "model", image_size=tiny.IMAGE_SIZE, width=32)
    write_clip(folder / "clip.mp4", num_frames=24, size=64)
    (folder / "text.mp4").write_text("not a video")
    return folder


def tango(files: Path, command: str, video: str = "clip.mp4", *options: str) -> int:
    question = ["What happens?", "--max-new-tokens", "3"] if command == "answer" else []
    base = [command, str(files / video), *question, "--model", str(files / "model"), "--num-frames", "6"]
    return main([*base, *options])


def test_answer_prints_the_counts(files, capsys):
    assert tango(files, "answer") == 0
    assert "96 -> " in capsys.readouterr().out


def test_answer_json_is_one_object(files, capsys):
    assert tango(files, "answer", "clip.mp4", "--json", "--retention-ratio", "0.25", "--option", "alpha=2") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["options"]["alpha"] == 2
    assert record["stats"]["tokens_before"] == 96
    assert record["stats"]["tokens_after"] < 40
    expected = {"read", "preprocess", "tower", "project", "prune", "splice", "between", "prefill", "decoding"}
    assert set(record["stages_ms"]) == expected
    assert len(record["frame_timestamps_s"]) == 6


def test_answer_with_a_static_cache(files, monkeypatch, capsys):
    asked = []
    stock = commands_answer.generate_text
    monkeypatch.setattr(commands_answer, "generate_text", lambda *a, **k: asked.append(k) or stock(*a, **k))
    records = []
    for options in ([], ["--static-cache"]):
        assert tango(files, "answer", "clip.mp4", "--json", *options) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert [options.get("cache_implementation") for options in asked] == [None, "static"]
    assert [record["static_cache"] for record in records] == [False, True]
    assert records[0]["answer"] == records[1]["answer"]


@pytest.mark.parametrize("method", [["--retention-ratio", "0.25"], ["--method", "none"]])
def test_further_questions_get_the_answers_they_get_alone(files, capsys, method):
    others = ("Why?", "Where to?")
    assert tango(files, "answer", "clip.mp4", "--json", *method, "--ask", others[0], "--ask", others[1]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["What happens?", *others]
    assert {"read", "encode"} < set(records[0]["stages_ms"])
    for record in records:
        base = ["answer", str(files / "clip.mp4"), record["question"], "--model", str(files / "model")]
        assert main([*base, "--num-frames", "6", "--max-new-tokens", "3", "--json", *method]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert record["answer"] == alone["answer"]
        assert set(record["stages_ms"]).isdisjoint({"tower", "project", "prune"})
    assert not {"read", "encode"} & set(records[1]["stages_ms"])
    late = ["--ask", "Why?", "--method", "fastv", "--option", "layer=1", "--retention-ratio", "0.8"]
    assert tango(files, "answer", "clip.mp4", *late) == 2
    assert "looks at the question" in capsys.readouterr().err


def test_answer_without_pruning(files, capsys):
    assert tango(files, "answer", "clip.mp4", "--json", "--method", "none") == 0
    assert json.loads(capsys.readouterr().out)["stats"] is None


def test_answer_with_pruning_inside_the_llm(files, capsys):
    options = ["--mean-retention-ratio", "0.3", "--layer-pruner", "fastv-merge"]
    assert tango(files, "answer", "clip.mp4", *options) == 2  # the tiny model has no layer 18
    assert "layer" in capsys.readouterr().err
    assert tango(files, "answer", "clip.mp4", "--json", "--mean-retention-ratio", "0.3") == 0
    assert json.loads(capsys.readouterr().out)["mean_retention_ratio"] == 0.3


def test_options_come_from_a_file_and_flags_win(files, capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("method: tango\nretention_ratio: 0.5\nalpha: 2\n")
    assert tango(files, "answer", "clip.mp4", "--json", "--config", str(config), "--retention-ratio", "0.2") == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert (options["alpha"], options["retention_ratio"]) == (2, 0.2)


def test_inspect_counts_add_up(files, capsys):
    assert tango(files, "inspect", "clip.mp4", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert sum(segment["kept"] for segment in record["segments"]) == record["tokens_after"] == len(record["indices"])
    assert record["segments"][0]["frames"][0] == 0
    assert record["segments"][-1]["frames"][1] == 5
    assert len(record["assignment"]) == 96


@pytest.mark.parametrize("method", ["tango", "uniform"])
def test_inspect_draws_every_kept_token(files, capsys, method):
    assert tango(files, "inspect", "clip.mp4", "--map", "--method", method) == 0
    out = capsys.readouterr().out
    counts, _, drawing = out.partition("\n0:")
    kept = int(counts.split(" -> ")[1].split()[0])
    assert drawing.count("#") + drawing.count("@") == kept


MISTAKES = {
    "missing file": (["answer", "nowhere.mp4"], "no such file"),
    "not a video": (["answer", "text.mp4"], "cannot read video"),
    "unknown method": (["answer", "clip.mp4", "--method", "tangoo"], "Did you mean 'tango'"),
    "ratio": (["answer", "clip.mp4", "--retention-ratio", "1.5"], "must lie in (0, 1], got 1.5"),
    "two ratios": (["answer", "clip.mp4", "--retention-ratio", "0.1", "--mean-retention-ratio", "0.1"], "not both"),
    "layer pruner": (["answer", "clip.mp4", "--layer-pruner", "fastv-merg"], "Did you mean 'fastv-merge'"),
    "option name": (["answer", "clip.mp4", "--option", "beta=1"], "unknown option of tango 'beta'"),
    "option value": (["answer", "clip.mp4", "--option", "alpha=much"], "alpha must be a number, got 'much'"),
    "option form": (["answer", "clip.mp4", "--option", "alpha"], "NAME=VALUE"),
    "config file": (["answer", "clip.mp4", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
    "frames": (["inspect", "clip.mp4", "--num-frames", "0"], "num_frames must be at least 1"),
    "device": (["inspect", "clip.mp4", "--device", "cuda:99"], "no device cuda:99"),
    "backend": (["inspect", "clip.mp4", "--video-backend", "opencv"], "unknown"),
    "none with a ratio": (["answer", "clip.mp4", "--method", "none", "--retention-ratio", "0.3"], "keeps all tokens"),
    "binary config": (
        ["answer", "clip.mp4", "--config", str(ROOT / "tests/data/golden/d01_dpc_knn.npz")],
        "cannot read",
    ),
    "config of another": (
        ["answer", "clip.mp4", "--method", "uniform", "--config", str(ROOT / "configs/methods/tango.yaml")],
        "is for the method tango",
    ),
    "none": (["inspect", "clip.mp4", "--method", "none"], "inspect needs a pre-LLM method"),
    "question": (["inspect", "clip.mp4", "--method", "cdpruner"], "what cdpruner keeps depends on the question"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(files, capsys, arguments, message):
    assert tango(files, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tango: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_installed_command_runs():
    result = subprocess.run(
        [sys.executable, "-m", "tango.cli", "methods", "--json"], capture_output=True, text=True, check=True
    )
    expected = [*available_pruners(), *available_layer_pruners(), *available_tower_mergers()]
    assert [m["name"] for m in json.loads(result.stdout)] == expected


def test_quickstart(capsys):
    assert main(["quickstart", "--num-frames", "4", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["all tokens"]["tokens_after"] == 4 * 196
    assert results["pruned"]["tokens_after"] < 100


@pytest.mark.parametrize("name", available_pruners())
def test_config_files_hold_the_defaults(name):
    options = yaml.safe_load((ROOT / "configs" / "methods" / f"{name}.yaml").read_text())
    assert options.pop("method") == name
    assert build_pruner(name, **options) == pruner_class(name)()


@pytest.mark.parametrize(
    "name", [name for name in available_layer_pruners() if not name.endswith(("-merge", "-select"))]
)
def test_config_files_of_methods_inside_the_llm_hold_the_defaults(name):
    options = yaml.safe_load((ROOT / "configs" / "methods" / f"{name}.yaml").read_text())
    assert options.pop("method") == name
    assert options.pop("retention_ratio") == 0.1  # the mean over the layers
    assert build_layer_pruner(name, **options) == layer_pruner_class(name)()


def test_the_readmes_table_is_fresh(capsys):
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
