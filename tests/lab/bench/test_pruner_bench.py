"""The pruner benchmark at tiny sizes: what it reports, not how fast anything is."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from tango.errors import TangoError
from tango.lab.bench import pruner as bench
from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods import build_pruner
from tango.methods.tango import TangoPruner
from tango.ops.segmentation import adjacent_similarity

ROOT = Path(__file__).parents[3]
TINY = ["--frames", "8", "4", "--grid", "4x4", "--dim", "48", "--repeats", "1", "--device", "cpu"]


def run(*options: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args([*TINY, "--retention-ratio", "0.3", *options]))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "new" / "report.json"
    threads = torch.get_num_threads()
    assert run("--threads", "2", "--output", str(path)) == 0
    assert torch.get_num_threads() == threads
    assert os.listdir(path.parent) == ["report.json"]
    return json.loads(path.read_text())


def test_report_says_what_was_run(report: dict[str, Any]) -> None:
    assert set(report) == {"benchmark", "date", "config", "versions", "rows"}
    config = report["config"]
    assert config["frames"] == [4, 8]
    assert config["grid"] == [4, 4]
    assert build_pruner(config["method"], **config["options"]) == TangoPruner(retention_ratio=0.3)
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["threads"] == 2


def test_rows_hold_times_by_stage(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        assert row["total_min_ms"] <= row["total_ms"] <= row["total_max_ms"]
        assert list(row["stages_ms"]) == [f"{stage}_ms" for stage in bench.STAGES]
        assert all(value > 0 for value in row["stages_ms"].values())
        assert row["input_mb"] == pytest.approx(row["frames"] * 16 * 48 * 4 / 1e6)


def test_rows_agree_with_the_reference(report: dict[str, Any]) -> None:
    for row in report["rows"]:
        reference = row["reference"]
        assert reference["indices_equal"]
        assert reference["common_share"] == 1
        assert reference["kept_tokens"] == row["kept_tokens"]
        assert reference["speedup_min"] <= reference["speedup"] <= reference["speedup_max"]


def test_growth_compares_neighbouring_sizes(report: dict[str, Any]) -> None:
    small, large = report["rows"]
    assert small["time_exponent"] is None
    assert large["time_exponent"] == pytest.approx(math.log2(large["total_ms"] / small["total_ms"]))
    assert bench.growth_exponent({"frames": 4, "x": 3.0}, {"frames": 8, "x": 12.0}, "x") == pytest.approx(2)
    assert bench.growth_exponent({"frames": 4, "x": None}, {"frames": 8, "x": 12.0}, "x") is None
    assert bench.growth_exponent({"frames": 4, "x": 0.0}, {"frames": 8, "x": 12.0}, "x") is None


def test_disagreement_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "_probe_in_child", lambda *_: None)

    def by_turns(_: TangoPruner, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return torch.arange(k), torch.arange(len(points)) % k

    monkeypatch.setattr(TangoPruner, "cluster", by_turns)  # on the page alone
    assert run() == 1
    assert "in common" in capsys.readouterr().err


def test_table_has_a_line_per_size(report: dict[str, Any]) -> None:
    lines = bench.format_report(report).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines[1:]}) == 1


def test_other_methods_and_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_probe_in_child", lambda *_: None)  # as where /proc does not exist
    assert run("--method", "uniform", "--data", "iid", "--dtype", "bfloat16", "--output", str(tmp_path / "u.json")) == 0
    assert run("--reference-up-to", "4", "--output", str(tmp_path / "t.json")) == 0
    uniform, tango = (json.loads((tmp_path / name).read_text())["rows"] for name in ("u.json", "t.json"))
    assert [row["stages_ms"] for row in uniform] == [None, None]
    assert [row["reference"] for row in uniform] == [None, None]
    assert [row["peak_extra_mb"] for row in uniform] == [None, None]
    assert [row["reference"] is None for row in tango] == [False, True]


def test_stages_add_up_to_the_whole() -> None:
    tokens = synthetic_tokens("video", 16, (8, 8), 96)
    with profile(activities=[ProfilerActivity.CPU]) as recorded, record_function("tango::other"):
        build_pruner("tango")(tokens)
    stages = bench._by_stage(recorded, torch.device("cpu"))
    (whole,) = (event.cpu_time_total for event in recorded.events() if event.name == "tango::other")
    assert set(stages) == set(bench.STAGES)
    assert sum(stages.values()) == pytest.approx(whole / 1e3)
    assert min(stages.values()) >= 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through /proc")
def test_memory_counts_what_a_run_needs(report: dict[str, Any]) -> None:
    assert all(0 <= row["peak_extra_mb"] < 20 for row in report["rows"])
    # In a process of its own, as the benchmark does: what else is freed meanwhile would hide the run's needs.
    code = (
        "import torch; from tango.lab.bench import pruner\n"
        "print(pruner._probe_host(lambda size: torch.ones(size).sum(), 12_500_000, 12_500_000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == pytest.approx(50, abs=5)


@pytest.mark.parametrize("options", [["--frames", "0"], ["--grid", "14"], ["--grid", "0x4"], ["--method", "tagno"]])
def test_bad_options_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*options)
    assert "error: argument" in capsys.readouterr().err


def test_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TangoError, match="no CUDA device"):
        run("--device", "cuda")


def test_script_is_valid_shell() -> None:
    script = ROOT / "scripts" / "bench_pruner.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("kind", ["iid", "video"])
def test_synthetic_tokens_are_reproducible(kind: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (synthetic_tokens(kind, 9, (5, 4), 32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.saliency, again.saliency)
    assert not torch.equal(first.features, other.features)
    assert first.saliency.sum(1).allclose(torch.ones(9))
    assert first.frame_embeds.allclose(first.features.mean(1), atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_synthetic_tokens_look_like_their_kind() -> None:
    iid, _ = adjacent_similarity(synthetic_tokens("iid", 64, (8, 8), 512).features)
    video, _ = adjacent_similarity(synthetic_tokens("video", 64, (8, 8), 512).features)
    assert iid.abs().max() < 0.4
    assert 0.3 < (video > 0.65).float().mean() < 0.7
    assert 0.15 < (video > 0.8).float().mean() < 0.5
    cuts = (video < 0.65).all(dim=1).sum()
    assert 3 <= cuts <= 20
    assert TangoPruner().segments(synthetic_tokens("take", 40, (8, 8), 512)) == [40]


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="iid, video"):
        synthetic_tokens("film", 4, (2, 2), 8)


def test_the_page_makes_its_tensors_where_its_input_is() -> None:
    """Whatever it made on the default device would not go together with the tokens."""
    tokens, pruner = synthetic_tokens("video", 6, (4, 4), 48), TangoPruner(retention_ratio=0.3, engine="plain")
    expected = pruner(tokens)
    with torch.device("meta"):
        found = pruner(tokens)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.features, expected.features)


def test_the_file_is_whole_after_every_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[list[int]] = []
    monkeypatch.setattr(bench, "write_json", lambda _, report: written.append([r["frames"] for r in report["rows"]]))
    assert run("--output", str(tmp_path / "p.json"), "--reference-up-to", "0") == 0
    assert written == [[4], [4, 8]]
