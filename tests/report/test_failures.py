"""Questions that got no answer: every report of a run says how many they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tango.cli import main
from tango.report.readers import read_results
from tests.report.folders import everything, verdicts, write_lines, write_run

TANGO = {"method": "tango", "retention_ratio": 0.1}
WRONG = [
    {"benchmark": "TangoMini", "question_id": i, "video_id": "v", "group": "count", "correct": False} for i in range(20)
]


def said(capsys: pytest.CaptureFixture[str], *command: object) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(part) for part in command]) == 0
    return capsys.readouterr()


def failing(path: Path, *failed: int, **run: Any) -> Path:
    """Twenty wrong answers, of which some questions failed; none given: lines do not say."""
    lines = [{**line, "failed": line["question_id"] in failed} for line in WRONG] if failed else WRONG
    return write_lines(path, TANGO, lines, **run)


def test_a_run_of_which_nothing_could_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its accuracy of 0 and the ratio that it was started with say nothing of the method."""
    source = failing(tmp_path / "now_records.jsonl", *range(20))
    out, err = said(capsys, "runs", "--results", tmp_path)
    row = out.splitlines()[-1]
    assert row.startswith("| LLaVA-OneVision-7B | TangoMini | tango | 0.1 | - | 0.0 ")
    assert row.endswith("| 20 |")
    assert err == (
        f"tango: warning: {source} (TangoMini): 20 of 20 questions failed and count as wrong; this accuracy says "
        "little about the model\n"
    )
    (line,) = json.loads(said(capsys, "runs", "--results", tmp_path, "--json")[0])
    assert (line["num_failed"], line["tokens_percent"], line["accuracy"]) == (20, None, 0)


def test_a_few_failures_are_said_in_fewer_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing(tmp_path / "records.jsonl", num_failed=3)
    out, err = said(capsys, "runs", "--results", tmp_path)
    assert out.splitlines()[-1].endswith("| 3 |")
    assert err.endswith("(TangoMini): 3 of 20 questions failed and count as wrong\n")


def test_where_failures_are_not_recorded_there_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing(tmp_path / "records.jsonl")
    out, err = said(capsys, "runs", "--results", tmp_path)
    assert out.splitlines()[-1].endswith("| - |")
    assert err == ""


@pytest.mark.usefixtures("miniature")
class TestVlmevalkit:
    ANSWERS = everything("111111101101;11111100;111010;1111011")

    def test_tables_mark_cells_and_list_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_run(tmp_path, {"method": "none"}, self.ANSWERS, failed={"Video-MME": 1})
        folder = write_run(tmp_path, TANGO, self.ANSWERS, failed={"Video-MME": 2, "LongVideoBench": 3})
        out, err = said(capsys, "table", "3", "--results", tmp_path)
        note = f"{folder} (Video-MME): 2 of 12 questions failed and count as wrong"
        assert f"- marked !: {note}\n" in out
        assert f"tango: warning: {note}\n" in err
        rows = [line for line in out.splitlines() if line.startswith("| tango | 10 | 10.2 | ours |")]
        cells = rows[0].split(" | ")[4:]
        assert [cell.split(" ")[0] for cell in cells] == ["83.3!", "66.7!", "100.0!"]
        assert "marked !" in said(capsys, "table", "3", "--results", tmp_path, "--format", "latex")[0]
        table = csv.DictReader(said(capsys, "table", "3", "--results", tmp_path, "--format", "csv")[0].splitlines())
        counts = {(row["method"], row["column"]): row["num_failed"] for row in table}
        assert counts["tango", "Video-MME"] == "2"
        assert counts["full", "Video-MME"] == "1"
        assert counts["tango", "performance"] == "6"  # its own five and one of all tokens'
        assert counts["diverse", "Video-MME"] == ""

    def test_figures_say_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("matplotlib")
        write_run(tmp_path / "results", TANGO, self.ANSWERS, failed={"MVBench": 8})
        _, err = said(
            capsys, "figure", "accuracy", "--results", tmp_path / "results", "--output", tmp_path / "figure.png"
        )
        assert "(MVBench): 8 of 8 questions failed and count as wrong; this accuracy says little" in err


def test_json_lines_can_say_that_a_question_failed(tmp_path: Path) -> None:
    line: dict[str, Any] = {"model": "m", "method": {"method": "none"}, "benchmark": "b", "video_id": "v"}
    answers = [{"correct": right, "failed": failed} for right, failed in ((True, False), (True, True), (False, True))]
    path = tmp_path / "a_records.jsonl"
    path.write_text("".join(json.dumps({**line, "question_id": i, **one}) + "\n" for i, one in enumerate(answers)))
    (run,) = read_results([tmp_path]).runs
    assert run.num_failed == 2
    assert [question.correct for question in run.questions] == verdicts("100")
