"""`tango figure` as a user meets it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from tango.cli import main
from tests.report.folders import FULL, MINIATURE, everything, five_runs, write_run


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tango.report.benchmarks.BENCHMARKS", MINIATURE)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return five_runs(tmp_path / "outputs")


def rows_of(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["method"], row["tokens_percent"]): row for row in csv.DictReader(path.read_text().splitlines())}


def test_numbers_and_picture(outputs, tmp_path):
    path = tmp_path / "new" / "accuracy.svg"
    assert main(["figure", "accuracy", "--results", str(outputs), "--output", str(path)]) == 0
    rows = rows_of(path.with_suffix(".csv"))
    assert set(rows) == {
        ("none", "100.0"),
        ("tango", "10.204082"),
        ("tango", "20.408163"),
        ("fastv", "10.0"),
        ("tango-fastv-merge18", "10.204082"),
    }
    expected = (100 * 8 / 12 + 50 + 50 + 40) / 4
    assert float(rows["tango", "10.204082"]["accuracy"]) == pytest.approx(expected)
    assert rows["none", "100.0"]["num_questions"] == "33"
    assert path.read_text().startswith("<?xml")


def test_tokens_are_as_configured_where_they_were_not_recorded(outputs, tmp_path):
    for path in outputs.rglob("run.json"):
        path.write_text(path.read_text().replace("mean_tokens_after", "some_other_name"))
    path = tmp_path / "accuracy.svg"
    assert main(["figure", "accuracy", "--results", str(outputs), "--output", str(path)]) == 0
    assert {tokens for _, tokens in rows_of(path.with_suffix(".csv"))} == {"100.0", "10.0", "20.0"}


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_results_give_the_same_bytes(outputs, tmp_path, form):
    for name in ("a", "b"):
        command = ["figure", "accuracy", "--results", str(outputs), "--output", str(tmp_path / f"{name}.{form}")]
        assert main(command) == 0
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()


def test_some_benchmarks_and_who_is_left_out(outputs, tmp_path, capsys):
    write_run(outputs, {"method": "uniform"}, {"MVBench": [True] * 8})
    path = tmp_path / "a.png"
    command = ["figure", "accuracy", "--results", str(outputs), "--output", str(path)]
    assert main(command) == 0
    assert "uniform is left out: it was not run on LongVideoBench, MLVU, Video-MME" in capsys.readouterr().err
    assert main([*command, "--benchmarks", "MVBench"]) == 0
    assert rows_of(path.with_suffix(".csv"))["uniform", "10.204082"]["accuracy"] == "100.0"


def test_without_matplotlib_there_are_the_numbers(outputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "a.png"
    assert main(["figure", "accuracy", "--results", str(outputs), "--output", str(path)]) == 2
    assert 'pip install "matplotlib>=3.8"' in capsys.readouterr().err
    assert len(rows_of(path.with_suffix(".csv"))) == 5
    assert not path.exists()


def test_mistakes_exit_with_2(outputs, tmp_path, capsys):
    command = ["figure", "accuracy", "--results", str(outputs), "--output"]
    assert main([*command, str(tmp_path / "a.jpg")]) == 2
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "a.png"), "--model", "other"]) == 2
    assert "no results of other; there are those of LLaVA-OneVision-7B" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "a.png"), "--benchmarks", "EgoSchema"]) == 2
    assert "no method was run on all of EgoSchema" in capsys.readouterr().err
    write_run(outputs, {"method": "none"}, everything(FULL), model="Qwen2.5-VL-7B")
    assert main([*command, str(tmp_path / "a.png")]) == 2
    assert "choose one with --model: LLaVA-OneVision-7B, Qwen2.5-VL-7B" in capsys.readouterr().err
