"""Questions that got no answer: every report of a run says how many they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tango.cli import main
from tango.report.readers import read_results
from tests.report.folders import everything, verdicts, write_lmms_eval, write_vlmevalkit

TANGO = {"method": "tango", "retention_ratio": 0.1}
SCORES = {"videoID": "v", "task_category": "count"}
WRONG = [{"accuracy": {**SCORES, "score": 0.0}} for _ in range(20)]


def said(capsys: pytest.CaptureFixture[str], *command: object) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(part) for part in command]) == 0
    return capsys.readouterr()


def test_a_run_of_which_nothing_could_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its accuracy of 0 and the ratio that it was started with say nothing of the method."""
    sums = {"samples": 20, "failures": 20}
    folder = write_lmms_eval(tmp_path / "mini", TANGO, {"tango_mini": WRONG}, more={"sums": sums})
    out, err = said(capsys, "runs", "--results", tmp_path)
    row = out.splitlines()[-1]
    assert row.startswith("| llava-onevision-qwen2-7b-ov | TangoMini | tango | 0.1 | - | 0.0 ")
    assert row.endswith("| 20 |")
    source = folder / "20260101_120000_results.json"
    assert err == (
        f"tango: warning: {source} (TangoMini): 20 of 20 questions failed and count as wrong; this accuracy says "
        "little about the model\n"
    )
    (line,) = json.loads(said(capsys, "runs", "--results", tmp_path, "--json")[0])
    assert (line["num_failed"], line["tokens_percent"], line["accuracy"]) == (20, None, 0)


def test_a_few_failures_are_said_in_fewer_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lmms_eval(tmp_path, TANGO, {"tango_mini": WRONG}, more={"sums": {"samples": 20, "failures": 3}})
    out, err = said(capsys, "runs", "--results", tmp_path)
    assert out.splitlines()[-1].endswith("| 3 |")
    assert err.endswith("(TangoMini): 3 of 20 questions failed and count as wrong\n")


def test_failures_belong_to_their_tasks(tmp_path: Path) -> None:
    samples = {"tango_mini": WRONG, "tango_mini_blank": WRONG, "egoschema": WRONG}
    failed = [{"task": "tango_mini_blank", "doc_id": i, "error": "VideoReadError: gone"} for i in range(4)]
    failed.append({"task": "egoschema", "doc_id": 3, "error": "OutOfMemoryError: 1 GB"})
    more = {"sums": {"samples": 60, "failures": 5}, "failed_questions": failed}
    write_lmms_eval(tmp_path, TANGO, samples, more=more)
    found = {run.benchmark.name: run.num_failed for run in read_results([tmp_path]).runs}
    assert found == {"TangoMini": 0, "TangoMini-blank": 4, "egoschema": 1}


@pytest.mark.parametrize(("total", "expected"), [(0, 0), (5, None)])
def test_a_sum_over_several_tasks_is_a_note(tmp_path: Path, total: int, expected: int | None) -> None:
    samples = {"tango_mini": WRONG, "egoschema": WRONG}
    write_lmms_eval(tmp_path, TANGO, samples, more={"sums": {"samples": 40, "failures": total}})
    results = read_results([tmp_path])
    assert {run.num_failed for run in results.runs} == {expected}
    assert [note.partition(": ")[2] for note in results.notes] == (
        ["5 of 40 questions failed and count as wrong (egoschema, TangoMini)"] if total else []
    )


def test_where_failures_are_not_recorded_there_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lmms_eval(tmp_path, TANGO, {"tango_mini": WRONG})
    out, err = said(capsys, "runs", "--results", tmp_path)
    assert out.splitlines()[-1].endswith("| - |")
    assert err == ""


@pytest.mark.usefixtures("miniature")
class TestVlmevalkit:
    ANSWERS = everything("111111101101;11111100;111010;1111011")

    def test_tables_mark_cells_and_list_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_vlmevalkit(tmp_path, {"method": "none"}, self.ANSWERS, failed={"Video-MME": 1})
        folder = write_vlmevalkit(tmp_path, TANGO, self.ANSWERS, failed={"Video-MME": 2, "LongVideoBench": 3})
        out, err = said(capsys, "table", "3", "--results", tmp_path)
        note = f"{folder} (Video-MME): 2 of 12 questions failed and count as wrong"
        assert f"- marked !: {note}\n" in out
        assert f"tango: warning: {note}\n" in err
        rows = [line for line in out.splitlines() if line.startswith("| tango | ours |")]
        cells = rows[0].split(" | ")[2:]
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
        write_vlmevalkit(tmp_path / "results", TANGO, self.ANSWERS, failed={"MVBench": 8})
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
