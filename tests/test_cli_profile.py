"""`tango profile` as a user meets it: structure, counts and files, never how fast anything is."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tango
from tango.cli import main
from tango.commands import profile
from tango.lab.bench import endtoend, random_model
from tango.toy import write_checkpoint, write_clip
from tests import tiny

ROOT = Path(tango.__file__).parent.parent
TINY = ["profile", "--random-weights", "llava-onevision-tiny", "--num-frames", "2", "--device", "cpu"]
QUICK = [*TINY, "--layers", "2", "--tower-layers", "1", "--repeats", "1", "--max-new-tokens", "2"]
LABELS = [
    f"{method}, {tower} tower"
    for tower in ("sdpa", "eager")
    for method in ("none", "tango-r0.25", "tango-r0.6", "fastv-r0.25", "fastv-r0.6")
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record and the picture of one run, in which two rows fail: FastV cannot keep so little."""
    folder = tmp_path_factory.mktemp("profile") / "new"
    settings = ["--methods", "none,tango,fastv", "--ratios", "0.25, 0.6", "--tower-attn-implementation", "sdpa,eager"]
    runs = ["--repeats", "2", "--max-new-tokens", "4"]
    files = ["--output", str(folder / "p.json"), "--plot", str(folder / "p.png")]
    assert main([*TINY, *settings, *runs, *files]) == 1
    return folder


@pytest.fixture(scope="module")
def record(written: Path) -> dict[str, Any]:
    return json.loads((written / "p.json").read_text())


class TestRecord:
    def test_says_what_was_measured(self, record: dict[str, Any]) -> None:
        assert set(record) == {"benchmark", "config", "environment", "rows"}
        config = record["config"]
        assert (config["model"], config["random_weights"], config["num_frames"]) == ("llava-onevision-tiny", True, 2)
        assert (config["layers"], config["tower_layers"], config["dtype"]) == (4, 2, "float32")
        assert (config["attn_implementation"], config["tower_attn_implementation"]) == ("sdpa", "sdpa")
        assert config["question"] == profile.QUESTION
        assert "RSS" in config["note"]
        assert record["environment"]["versions"]["tango"] == tango.__version__

    def test_has_every_method_at_every_ratio_with_every_tower(self, record: dict[str, Any]) -> None:
        assert [row["label"] for row in record["rows"]] == LABELS
        assert [row["method"]["options"].get("retention_ratio") for row in record["rows"]] == [
            None, 0.25, 0.6, 0.25, 0.6
        ] * 2  # fmt: skip

    def test_rows_that_fail_say_why_and_the_others_go_on(self, record: dict[str, Any]) -> None:
        failed = {row["label"]: row for row in record["rows"] if row["error"]}
        assert list(failed) == ["fastv-r0.25, sdpa tower", "fastv-r0.25, eager tower"]
        for row in record["rows"]:
            assert row["runs"] == (0 if row["label"] in failed else 2)
        assert all("BudgetError: 0.25 of the visual tokens" in row["error"] for row in failed.values())

    def test_counts_add_up(self, record: dict[str, Any]) -> None:
        rows = {row["label"]: row for row in record["rows"] if row["runs"]}
        for row in rows.values():
            tokens = row["tokens"]
            assert tokens["tokens_before"] == 2 * 196
            assert row["new_tokens"] == 4
            text = tokens["prompt_before"][0] - tokens["tokens_before"] - 1
            assert tokens["prompt_after"][0] == text + tokens["tokens_after"] + 1
        pruned = rows["tango-r0.25, sdpa tower"]["tokens"]
        assert 0.2 * 392 < pruned["tokens_after"] < 0.3 * 392
        assert rows["none, sdpa tower"]["tokens"]["tokens_after"] == 392
        inside = rows["fastv-r0.6, sdpa tower"]["tokens"]
        assert inside["tokens_after"] == 392
        assert inside["mean"] == pytest.approx(0.6 * 392, abs=1)

    def test_stages_and_tables_are_those_of_the_evaluation(self, record: dict[str, Any]) -> None:
        for row in record["rows"]:
            if not row["runs"]:
                continue
            stages = ["preprocess", "tower", "project", "prune", "splice", "between", "prefill", "decoding"]
            assert list(row["stages_ms"]) == stages
            for spread in [*row["stages_ms"].values(), row["ttft_ms"], row["decoding_tokens_per_s"]]:
                assert 0 < spread["min"] <= spread["median"] <= spread["max"]
            table = row["release_table"]
            assert len(table) == 8
            between = row["stages_ms"]["between"]["median"]  # of two runs the median is the mean
            assert table["Avg_Total_TTFT (ms)"] == pytest.approx(row["ttft_ms"]["median"] - between)
            assert table["Peak_mem (GB)"] == row["peak_bytes"] / 2**30

    def test_speed_ups_stand_beside_the_prediction(self, record: dict[str, Any]) -> None:
        flops = {}
        for row in record["rows"]:
            if row["runs"]:
                flops[row["label"]] = row["speedup"]["prefill_by_flops"]
                assert set(row["speedup"]) == {"ttft", "ttft_over_eager", "prefill", "prefill_by_flops"}
                assert row["speedup"]["ttft_over_eager"]["median"] > 0
                assert row["speedup"]["ttft"]["median"] > 0
        assert flops["none, sdpa tower"] == flops["none, eager tower"] == 1
        assert flops["tango-r0.25, sdpa tower"] > flops["tango-r0.6, sdpa tower"] > 1
        assert flops["fastv-r0.6, sdpa tower"] > 1


class TestShownAgain:
    """A record is shown as it was when it was measured, on a machine that need not have measured it."""

    def test_text_names_every_row(self, written: Path, record: dict[str, Any], capsys: Any) -> None:
        assert main(["profile", "--record", str(written / "p.json")]) == 1
        text = capsys.readouterr().out
        assert text == profile.format_text(record) + "\n"
        assert "llava-onevision-tiny, random weights (4 layers, tower of 2), 2 frames, float32, sdpa, " in text
        assert "4 new tokens; the first belongs to the prefill" in text
        assert text.count("failed: fastv-r0.25") == 2
        assert re.search(r"^fastv-r0.6, sdpa tower +392 \(mean 235\)", text, re.MULTILINE)
        for label in LABELS:
            assert re.search(rf"^{label} ", text, re.MULTILINE)

    def test_markdown_has_the_releases_eight_rows(self, written: Path, record: dict[str, Any], capsys: Any) -> None:
        assert main(["profile", "--record", str(written / "p.json"), "--markdown"]) == 1
        text = capsys.readouterr().out
        assert text == profile.format_markdown(record) + "\n"
        tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
        assert [len(table) for table in tables] == [2 + 10, 2 + 8]
        assert [len({line.count("|") for line in table}) for table in tables] == [1, 1]
        over_eager = [line.split(" | ")[-1].removesuffix(" |") for line in tables[0]]
        assert over_eager[0] == "TTFT over none, eager tower"
        assert over_eager[2 + LABELS.index("none, eager tower")] == "1.00 x"
        assert [cell == "-" for cell in over_eager[2:]] == [row["runs"] == 0 for row in record["rows"]]
        first = record["rows"][0]
        assert [line.split(" | ")[0].strip("| ") for line in tables[1][2:]] == list(first["release_table"])
        assert [line.split(" | ")[1] for line in tables[1][2:]] == [
            f"{value:.2f}" for value in first["release_table"].values()
        ]

    def test_the_picture_is_the_same(self, written: Path, tmp_path: Path) -> None:
        assert main(["profile", "--record", str(written / "p.json"), "--plot", str(tmp_path / "again.png")]) == 1
        assert (tmp_path / "again.png").read_bytes() == (written / "p.png").read_bytes()
        assert sorted(os.listdir(written)) == ["p.json", "p.png"]

    @pytest.mark.parametrize("content", ["", "[]", '{"benchmark": "pruner"}'])
    def test_other_files_are_refused(self, content: str, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "other.json").write_text(content)
        assert main(["profile", "--record", str(tmp_path / "other.json")]) == 2
        assert "other.json" in capsys.readouterr().err


def test_a_file_and_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", image_size=tiny.IMAGE_SIZE, width=32)
    write_clip(tmp_path / "clip.mp4", num_frames=12, size=64)
    files = ["--model", str(tmp_path / "model"), "--video", str(tmp_path / "clip.mp4"), "--num-frames", "4"]
    rest = ["--repeats", "1", "--max-new-tokens", "2", "--threads", "1", "--output", str(tmp_path / "p.json")]
    assert main(["profile", *files, *rest]) == 0
    record = json.loads((tmp_path / "p.json").read_text())
    assert record["config"]["random_weights"] is False
    assert record["config"]["threads"] == 1
    for row in record["rows"]:
        assert row["tokens"]["tokens_before"] == 4 * 16
        assert list(row["stages_ms"])[:2] == ["read", "preprocess"]


@pytest.mark.parametrize("name", ["llava-video-tiny", "qwen2.5-vl-tiny", "qwen3-vl-tiny", "qwen3.5-tiny"])
def test_other_families(name: str, capsys: Any) -> None:
    layers = ["--layers", "4" if name == "qwen3.5-tiny" else "2"]
    assert main([*QUICK, *layers, "--random-weights", name, "--methods", "none,tango,visionzip"]) == 0
    text = capsys.readouterr().out
    assert ("FLOPs of the LLM: 2 of 8 experts a token" in text) == (name == "qwen3.5-tiny")
    assert len(re.findall(r"^(none|tango-r0.1|visionzip-r0.1) ", text, re.MULTILINE)) == 3
    assert "TTFT over" not in text  # no row has an eager tower


@pytest.fixture
def an_old_gpu_and_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda:0, which is current, has no bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index == 0 else (8, 0))


@pytest.mark.usefixtures("an_old_gpu_and_a_new_one")
@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
        ("auto", "cuda:1", "bfloat16"),
        ("float32", "cuda:0", "float32"),
    ],
)
def test_random_weights_have_the_type_that_suits_the_device(asked: str, device: str, expected: str) -> None:
    assert profile._dtype(asked, torch.device(device)) == expected


@pytest.mark.usefixtures("an_old_gpu_and_a_new_one")
@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_a_gpu_without_bfloat16_gets_float16(asked: str) -> None:
    with pytest.warns(UserWarning, match="no bfloat16"):
        assert profile._dtype(asked, torch.device("cuda:0")) == "float16"


def test_the_file_is_whole_after_every_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = []
    monkeypatch.setattr(profile, "write_json", lambda _, record: runs.append([row["runs"] for row in record["rows"]]))
    assert main([*QUICK, "--repeats", "2", "--output", str(tmp_path / "p.json")]) == 0
    assert runs == [[0, 0], [1, 1], [2, 2]]


def test_all_rows_failing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def run_once(*_: Any) -> None:
        raise RuntimeError("no kernel\nimage")

    monkeypatch.setattr(endtoend, "run_once", run_once)
    assert main([*QUICK, "--output", str(tmp_path / "p.json")]) == 2
    assert "nothing could be measured: none: RuntimeError: no kernel" in capsys.readouterr().err
    assert {row["error"] for row in json.loads((tmp_path / "p.json").read_text())["rows"]} == {
        "RuntimeError: no kernel"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "tangle"], "unknown method 'tangle'. Did you mean 'tango'?"),
        (["--methods", "tango:engine"], "--methods needs name:option=value, got 'tango:engine'"),
        (["--methods", "tango:rope_sections=1:2"], "rope_sections must be 3 numbers or null (None), got '1:2'"),
        (["--methods", ","], "must name at least one"),
        (["--ratios", "0.1,much"], "--ratios needs numbers with commas between, got '0.1,much'"),
        (["--ratios", "2"], "must lie in (0, 1]"),
        (["--layers", "9"], "this shape has 4 layers"),
        (["--output", "."], "expected a file to write to, . is a folder"),
        (["--video", "missing.mp4"], "no such file"),
        (["--device", "warp"], "unknown device 'warp'"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str, capsys: Any) -> None:
    assert main([*QUICK, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_value_may_have_colons() -> None:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    options = ["--methods", "tango:rope_sections=2:2:2:kernels=off"]
    (row,) = profile.candidates_from(parser.parse_args([*QUICK[1:], *options]))
    assert row.method.options == {"retention_ratio": 0.1, "rope_sections": (2, 2, 2), "kernels": False}


def test_a_model_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def build(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setattr(random_model, "build", build)
    assert main(QUICK) == 2
    assert "does not fit into the memory of cpu: CUDA out of memory. Tried" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("--model", ["--layers", "2"], "--layers needs --random-weights"),
        ("--model", ["--tower-layers", "2"], "--tower-layers needs --random-weights"),
        ("--random-weights", ["--siglip", "somewhere"], "--siglip needs --model"),
        ("--random-weights", ["--offline"], "--offline needs --model"),
        ("--random-weights", ["--video-backend", "pyav"], "--video-backend needs --video"),
        ("--record", ["--offline"], "--offline is for measuring; --record shows what was measured before"),
        ("--record", ["--repeats", "3"], "--repeats is for measuring; --record shows what was measured before"),
        (
            "--record",
            ["--markdown", "--output", "p.json"],
            "--output is for measuring; --record shows what was measured before",
        ),
    ],
)
def test_options_that_would_do_nothing_are_refused(source: str, options: list[str], message: str, capsys: Any) -> None:
    assert main(["profile", source, "llava-onevision-tiny", *options]) == 2
    assert capsys.readouterr().err == f"tango: error: {message}\n"


@pytest.mark.parametrize("option", ["--tower-attn-implementation", "--attn-implementation"])
class TestAttention:
    def test_is_checked_before_the_model_is_made(
        self, monkeypatch: pytest.MonkeyPatch, option: str, capsys: Any
    ) -> None:
        monkeypatch.setattr(random_model, "build", lambda *_, **__: pytest.fail("the model was made"))
        assert main([*QUICK, option, "spda"]) == 2
        error = capsys.readouterr().err
        assert "unknown attention implementation 'spda'. Did you mean 'sdpa'?" in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize("name", ["eager", "flash_attention_2", "flex_attention", "owner/kernel"])
    def test_of_transformers_and_of_the_hub_is_left_to_them(
        self, monkeypatch: pytest.MonkeyPatch, option: str, name: str, capsys: Any
    ) -> None:
        def build(*_: Any, **__: Any) -> None:
            raise tango.TangoError("this far")

        monkeypatch.setattr(random_model, "build", build)
        monkeypatch.setattr(profile, "available_attention", lambda name, _: name)
        assert main([*QUICK, option, name]) == 2
        assert capsys.readouterr().err == "tango: error: this far\n"


def test_plain_code_and_a_compiled_tower_are_rows_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, backend: modes.append((mode, backend)) or function)
    output = ["--output", str(tmp_path / "p.json"), "--methods", "none,tango,tango-plain", "--ratios", "0.25"]
    assert main([*QUICK, "--compile", "reduce-overhead", *output]) == 0
    record = json.loads((tmp_path / "p.json").read_text())
    assert modes == [("reduce-overhead", "inductor")]
    assert record["config"]["compile"] == "reduce-overhead"
    assert [row["label"] for row in record["rows"]] == ["none", "tango-r0.25", "tango-r0.25-engineplain"]
    assert len({row["tokens"]["tokens_after"] for row in record["rows"][1:]}) == 1
    printed = capsys.readouterr()
    assert "tower of 1, compiled: reduce-overhead), 2 frames" in printed.out
    assert "tango-plain is deprecated; write tango:engine=plain" in printed.err


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of one run beside stock transformers, in other settings, too."""
    file = tmp_path_factory.mktemp("stock") / "p.json"
    methods = ["--methods", "stock,none,tango,uniform", "--ratios", "0.25", "--also", "static,compiled"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        assert main([*QUICK, *methods, "--roofline", "--output", str(file)]) == 0
    return json.loads(file.read_text())


class TestStockAndOtherSettings:
    """Transformers without Tango as the yardstick; a static cache and a compiled tower after the others."""

    def test_each_is_a_row_and_compares_with_stock(self, found: dict[str, Any]) -> None:
        rows = {row["label"]: row for row in found["rows"]}
        plain, also = ["stock", "none", "tango-r0.25", "uniform-r0.25"], ["static cache", "compiled tower"]
        assert list(rows) == [*plain, *(f"tango-r0.25, {how}" for how in also)]
        settings = [(row["stock"], row["static_cache"], row["compiled"]) for row in rows.values()]
        assert settings == [
            (True, False, None),
            *[(False, False, None)] * 3,
            (False, True, None),
            (False, False, "default"),
        ]
        for row in rows.values():
            gain = rows["stock"]["ttft_ms"]["median"] / row["ttft_ms"]["median"]  # there was one run
            assert row["speedup"]["ttft"]["median"] == pytest.approx(gain)
        assert rows["stock"]["speedup"]["ttft"]["median"] == 1
        assert rows["tango-r0.25"]["tokens"] == rows["tango-r0.25, static cache"]["tokens"]

    def test_stocks_stages_add_up_to_its_first_token(self, found: dict[str, Any]) -> None:
        stock, none = found["rows"][:2]
        assert list(stock["stages_ms"]) == ["preprocess", "tower", "between", "prefill", "decoding"]
        assert stock["tokens"]["prompt_after"] == none["tokens"]["prompt_after"]
        assert stock["tokens"]["tokens_after"] == none["tokens"]["tokens_after"] + 1  # the newline
        assert stock["new_tokens"] == none["new_tokens"] == 2

    def test_floors_stand_beside_the_times(self, found: dict[str, Any]) -> None:
        text = profile.format_text(found)
        (header,) = re.findall(r"^floor ms \(share reached\).*$", text, re.MULTILINE)
        assert header.split()[4:] == ["tower", "project", "prune", "splice", "prefill", "decoding"]
        assert len(re.findall(r"^tango-r0.25, static cache .*%\)$", text, re.MULTILINE)) == 1
        assert "TFLOP/s in a product" in text
        assert text.count(", with compiling: ") == 2
        assert "speed-ups over stock transformers with the same tower" in text
        assert "| floor ms (share reached) | tower |" in profile.format_markdown(found)
        stock, _, pruned, *_ = found["rows"]
        assert stock["work"]["tower"] == pruned["work"]["tower"]
        assert stock["work"]["prefill"]["flops"] > pruned["work"]["prefill"]["flops"]

    def test_stock_that_refuses_fails_alone(self, capsys: Any) -> None:
        options = ["--random-weights", "llava-video-tiny", "--methods", "stock,none,tango"]
        assert main([*QUICK, *options]) == 1
        text = capsys.readouterr().out
        assert "failed: stock: ValueError: " in text
        assert "speed-ups over all tokens" in text
        assert re.search(r"^none .*1.00 x +1.00 x +1.00 x$", text, re.MULTILINE)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--also", "statik"], "unknown name for --also 'statik'. Did you mean 'static'?"),
            (["--also", "static", "--static-cache"], "--also static compares with runs that are not"),
            (["--also", "compiled", "--compile"], "--also compiled compares with runs that are not"),
            (["--also", "static", "--methods", "none,stock"], "--also needs a method that prunes"),
        ],
    )
    def test_mistakes(self, options: list[str], message: str, capsys: Any) -> None:
        assert main([*QUICK, *options]) == 2
        assert message in capsys.readouterr().err

    def test_a_tower_that_cannot_be_compiled_fails_alone(self, capsys: Any) -> None:
        options = ["--random-weights", "qwen2.5-vl-tiny", "--tower-layers", "1", "--also", "compiled"]
        assert main([*QUICK, *options]) == 1
        assert "failed: tango-r0.1, compiled tower: UnsupportedModelError" in capsys.readouterr().out

    def test_a_static_cache_for_all(self, tmp_path: Path) -> None:
        assert main([*QUICK, "--static-cache", "--output", str(tmp_path / "p.json")]) == 0
        rows = json.loads((tmp_path / "p.json").read_text())["rows"]
        assert [row["label"] for row in rows] == ["none, static cache", "tango-r0.1, static cache"]
        assert all(row["speedup"]["ttft"]["median"] > 0 and row["first_run_ms"] > 0 for row in rows)


def test_needs_no_more_than_torch_transformers_and_accelerate() -> None:
    """A bare machine: what else Tango can use is not there, and not missed unless it is asked for."""
    absent = ("av", "PIL", "torchvision", "matplotlib", "jaxtyping", "decord", "torchcodec", "torchaudio", "scipy")
    alone = ["bench", "pruner", "--frames", "2", "--dim", "48", "--grid", "2x2", "--repeats", "1", "--device", "cpu"]
    code = f"""
import sys
for name in {absent}:
    sys.modules[name] = None
from tango.cli import _parser, main
status = main({[*QUICK, "--markdown", "--methods", "none,tango,tango:engine=plain"]!r}) or main({alone!r})
sys.exit(status or main({[*QUICK, "--plot", "p.png"]!r}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "| tango-r0.1 | 4" in done.stdout
    assert "| tango-r0.1-engineplain | 4" in done.stdout
    assert "tango, video data, T x 2x2 x 48" in done.stdout
    assert "--plot needs matplotlib" in done.stderr
    assert done.returncode == 2
