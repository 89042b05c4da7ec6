"""`tango runs`: one line per run, compared with all tokens on the same clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tango.cli import main
from tests.report.folders import everything, write_lines, write_run

pytestmark = pytest.mark.usefixtures("miniature")
FULL = "111111101101;11111100;111010;1111011"
PRUNED = "111110101100;11110000;101010;1111000"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    write_run(tmp_path, {"method": "none"}, everything(FULL), tokens=(6272.0, 6272.0))
    write_run(tmp_path, {"method": "tango", "retention_ratio": 0.1}, everything(PRUNED))
    return tmp_path


def test_json_has_every_number(outputs, capsys):
    assert main(["runs", "--results", str(outputs), "--json"]) == 0
    lines = {(line["benchmark"], line["method"]): line for line in json.loads(capsys.readouterr().out)}
    assert len(lines) == 8
    pruned, full = lines["Video-MME", "tango"], lines["Video-MME", "none"]
    assert (full["accuracy"], pruned["accuracy"]) == (round(1000 / 12, 4), round(800 / 12, 4))
    assert (full["minus"], pruned["minus"]) == (None, round(-200 / 12, 4))
    assert (full["tokens_percent"], pruned["tokens_percent"]) == (100, round(64000 / 6272, 4))
    assert (full["retention_ratio"], pruned["retention_ratio"]) == (None, 0.1)
    assert (pruned["num_questions"], pruned["num_clips"], pruned["num_expected"]) == (12, 4, 12)
    low, high = pruned["minus_interval"]
    assert low <= pruned["minus"] <= high <= 0  # never better on any clip
    assert set(pruned["groups"]) == {"short", "medium", "long"}


def test_the_table_is_markdown(outputs, capsys):
    assert main(["runs", "--results", str(outputs)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + 8
    row = next(row for row in rows if "Video-MME | tango |" in row)
    assert row.startswith("| LLaVA-OneVision-7B | Video-MME | tango | 0.1 | 10.2 | 66.7 [")
    assert "| -16.7 [" in row
    assert row.endswith("] | - | 12 | 4 | 0 |")  # these records do not say what was answered


def test_answers_that_stay_word_for_word_are_counted(tmp_path, capsys):
    said = {"none": ["A", "B", "C", None], "tango": ["A ", "C", "C", "D"]}
    for method, texts in said.items():
        about = {"benchmark": "Video-MME", "video_id": "v", "correct": True}
        lines = [{**about, "question_id": i, "text": text} for i, text in enumerate(texts)]
        write_lines(tmp_path / f"{method}-records.jsonl", {"method": method}, lines)
    assert main(["runs", "--results", str(tmp_path), "--json"]) == 0
    found = {line["method"]: line["same_answers"] for line in json.loads(capsys.readouterr().out)}
    assert found == {"none": None, "tango": round(100 * 2 / 3, 4)}


def test_another_run_is_the_reference(outputs, capsys):
    write_run(outputs, {"method": "uniform", "retention_ratio": 0.1}, everything(FULL))
    write_run(outputs, {"method": "uniform", "retention_ratio": 0.2}, everything(FULL))
    assert main(["runs", "--results", str(outputs), "--against", "tango", "--json"]) == 0
    lines = {
        (line["method"], line["retention_ratio"]): line
        for line in json.loads(capsys.readouterr().out)
        if line["benchmark"] == "Video-MME"
    }
    assert lines["uniform", 0.1]["minus"] == round(200 / 12, 4)
    assert lines["uniform", 0.2]["minus"] is None  # no run of tango at this ratio
    assert lines["none", None]["minus"] is None
    assert lines["tango", 0.1]["minus"] is None
    assert {line["against"] for line in lines.values()} == {"tango"}


def test_all_tokens_can_be_named_as_the_reference(outputs, capsys):
    assert main(["runs", "--results", str(outputs)]) == 0
    plain = capsys.readouterr().out
    assert main(["runs", "--results", str(outputs), "--against", "none"]) == 0
    assert capsys.readouterr().out == plain


def test_an_unknown_reference_is_refused(outputs, capsys):
    assert main(["runs", "--results", str(outputs), "--against", "tnago"]) == 2
    assert "unknown run 'tnago'. Did you mean 'tango'" in capsys.readouterr().err


def test_a_part_of_a_benchmark_says_so(tmp_path, capsys):
    write_run(tmp_path, {"method": "none"}, {"Video-MME": [True] * 6}, limit=6)
    assert main(["runs", "--results", str(tmp_path)]) == 0
    assert "| 6 of 12 | 2 | 0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"saliency": "of_a_package"}, "tango-of_a_package"),
        ({"options": {"retention_ratio": 0.1, "gone": 3}}, "tango-gone3"),
        ({"positions": "of_a_package"}, "tango-of_a_package"),
        ({"method": "of_a_package", "options": {"retention_ratio": 0.1, "depth": 2}}, "of_a_package-depth2"),
    ],
)
def test_a_run_whose_package_is_not_imported_is_no_plain_one(outputs, capsys, changed, name):
    folder = write_run(outputs / "foreign", {"method": "tango", "retention_ratio": 0.1}, everything(FULL))
    run = json.loads((folder / "run.json").read_text())
    run["method"] |= changed
    (folder / "run.json").write_text(json.dumps(run))
    assert main(["runs", "--results", str(outputs), "--against", "tango", "--json"]) == 0
    found = [line for line in json.loads(capsys.readouterr().out) if line["benchmark"] == "Video-MME"]
    lines = {line["method"]: line["minus"] for line in found}
    assert lines == {"none": None, "tango": None, name: round(200 / 12, 4)}
