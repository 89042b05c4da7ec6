"""The benchmark of all methods at tiny sizes: what it reports, not how fast anything is."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tango.cli import main
from tango.containers import PrunedTokens
from tango.lab.bench import layers
from tango.lab.bench import methods as bench
from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods import available_layer_pruners, available_pruners, build_layer_pruner, build_pruner

TINY = ["bench", "methods", "--frames", "8", "--grid", "4x4", "--dim", "48", "--device", "cpu"]
RATIO = ["--retention-ratio", "0.3"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "new" / "report.json"
    assert main([*TINY, *RATIO, "--repeats", "3", "--output", str(path)]) == 0
    assert os.listdir(path.parent) == ["report.json"]
    return json.loads(path.read_text())


def test_report_says_what_was_run(report: dict[str, Any]) -> None:
    assert set(report) == {"benchmark", "date", "config", "versions", "rows"}
    assert report["config"]["frames"] == 8
    assert report["config"]["repeats"] == 3
    options = report["config"]["options"]
    for name in available_pruners():
        assert build_pruner(name, **options[name]) == build_pruner(name, retention_ratio=0.3)
    for name in available_layer_pruners():
        assert build_layer_pruner(name, **options[name]) == layers.build(name, 0.3)
    assert options["fastv"]["retention_ratio"] == pytest.approx((0.3 * 28 - 2) / 26)
    assert options["holitom-merge"]["retention_ratio"] == 0.5  # a second step: its own
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["threads"] == 1


def test_every_method_has_a_row_with_what_it_keeps(report: dict[str, Any]) -> None:
    assert [row["method"] for row in report["rows"]] == [*available_pruners(), *available_layer_pruners()]
    tokens = synthetic_tokens("video", 8, (4, 4), 48)
    for row in report["rows"]:
        assert row["total_min_ms"] <= row["total_ms"] <= row["total_max_ms"]
        if row["stage"] == "intra-LLM":
            continue
        pruned = build_pruner(row["method"], retention_ratio=0.3)(tokens)
        assert row["kept_tokens"] == len(pruned.indices)
    merging = {row["method"] for row in report["rows"] if row["merges"]}
    assert {"fastvid", "holitom", "tango", "tango-paper", "tango-release", "visionzip"} <= merging
    assert {"fastv-merge", "holitom-merge", "framefusion", "sparsevlm"} <= merging
    assert not {"divprune", "random", "uniform", "vidcom2", "fastv", "dart", "pyramiddrop"} & merging
    kept = {row["method"]: row["kept_tokens"] for row in report["rows"]}
    assert kept["fastv"] == round((0.3 * 28 - 2) / 26 * 128)
    assert kept["fastv-merge"] == kept["holitom-merge"] == 64


def test_ratios_are_to_the_fastest_that_merges(report: dict[str, Any]) -> None:
    merging = [row for row in report["rows"] if row["merges"] and row["stage"] == "pre-LLM"]
    fastest = min(merging, key=lambda row: row["total_ms"])
    assert (fastest["ratio"], fastest["ratio_min"], fastest["ratio_max"]) == (1, 1, 1)
    for row in report["rows"]:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]


class TestMeasure:
    """Exact numbers, on a clock of its own."""

    @staticmethod
    def candidate(name: str, calls: list[str], merges: bool) -> bench.Candidate:
        assignment = torch.tensor([0, 0, -1]) if merges else torch.tensor([0, -1, -1])
        pruned = PrunedTokens(features=torch.zeros(1, 2), indices=torch.tensor([0]), assignment=assignment)

        def call() -> PrunedTokens:
            calls.append(name)
            return pruned

        return bench.Candidate(name, "pre-LLM", call, lambda pruned: (1, bench.merges(pruned)))

    def rows(self, monkeypatch: pytest.MonkeyPatch, merging: str) -> tuple[list[str], list[dict[str, Any]]]:
        durations = iter([1.0, 10.0, 100.0, 2.0, 40.0, 100.0, 3.0, 30.0, 600.0])

        def time_ms(function: Any, _device: torch.device) -> float:
            function()
            return next(durations)

        monkeypatch.setattr(bench, "time_ms", time_ms)
        calls: list[str] = []
        timed = [self.candidate(name, calls, name in merging) for name in "abc"]
        return calls, bench.measure(timed, 3, CPU)

    def test_runs_alternate_after_a_warm_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, rows = self.rows(monkeypatch, "bc")
        assert "".join(calls) == "abc" * 4
        assert [row["total_ms"] for row in rows] == [2, 30, 100]
        assert [(row["total_min_ms"], row["total_max_ms"]) for row in rows] == [(1, 3), (10, 40), (100, 600)]
        assert {row["stage"] for row in rows} == {"pre-LLM"}

    def test_ratios_are_taken_run_by_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, rows = self.rows(monkeypatch, "bc")
        assert [row["ratio"] for row in rows] == [0.1, 1, 10]
        assert [(row["ratio_min"], row["ratio_max"]) for row in rows] == [(0.05, 0.1), (1, 1), (2.5, 20)]

    def test_without_a_method_that_merges_there_is_no_ratio(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _, rows = self.rows(monkeypatch, "")
        assert {row["ratio"] for row in rows} == {None}
        assert "-" in bench._cells(rows[0])


def test_tables_have_a_line_per_method(report: dict[str, Any]) -> None:
    title, *lines = bench.format_report(report).splitlines()
    assert "30 % kept, video data, 8 x 4x4 x 48 float32" in title
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines] == ["method", *available_pruners(), *available_layer_pruners()]
    _, _, header, rule, *rows = bench.format_markdown(report).splitlines()
    assert {line.count("|") for line in (header, rule, *rows)} == {9}
    assert [re.split(r"[| ]+", row)[1] for row in rows] == [*available_pruners(), *available_layer_pruners()]


def test_exact_budget_and_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *RATIO, "--repeats", "1", "--exact-budget", "--markdown", "--data", "iid"]) == 0
    captured = capsys.readouterr()
    rows = [line.split(" | ") for line in captured.out.splitlines() if "| pre-LLM |" in line]
    assert [row[3] for row in rows] == ["38"] * len(available_pruners())
    assert "bench methods: 100%" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--output", "."], "--output needs a file"), (["--retention-ratio", "2"], "must lie in (0, 1]")],
)
def test_mistakes_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_script_passes_its_options_on(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "scripts" / "bench_methods.sh"
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [script, "--repeats", "1"], env={**os.environ, "PYTHON": str(fake)}, capture_output=True, text=True, check=True
    )
    expected = "-m tango.cli bench methods --frames 32 --grid 14x14 --dim 3584 --threads 1 --repeats 1"
    assert done.stdout.strip() == expected


def test_synthetic_tokens_carry_every_signal() -> None:
    tokens, again = (synthetic_tokens("video", 3, (4, 5), 48, seed=1, dtype=torch.bfloat16) for _ in range(2))
    assert tokens.saliency is not None
    assert tokens.frame_embeds is not None
    assert tokens.keys is not None
    assert tokens.keys.shape == (3, 20, 72)
    assert tokens.keys.dtype == torch.bfloat16
    assert torch.equal(tokens.keys, again.keys)
