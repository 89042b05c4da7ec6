"""`tango leaderboard` as a user and CI meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tango.cli import main
from tango.report.leaderboard import check_files
from tests.report.folders import write_lines
from tests.report.test_leaderboard import ENTRY, ENVIRONMENT

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "tests" / "data" / "results"


def add(folder: Path, output: Path, *options: str) -> int:
    return main(["leaderboard", "add", str(folder), "--who", "A. Tester", "--output", str(output), *options])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (said,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("tango: error: "))
    return said


class TestAdd:
    def test_runs_of_vlmevalkit(self, tmp_path, capsys):
        assert add(RUNS / "vlmevalkit" / "LLaVA-OneVision-7B-tango-r0.1", tmp_path) == 0
        files = sorted(tmp_path.iterdir())
        assert sorted(map(str, files)) == sorted(capsys.readouterr().out.split())
        checked = check_files(files)
        assert checked.mistakes == []
        entries = {entry["benchmark"]: entry for _, entry in checked.entries}
        assert {name: entry["set"] for name, entry in entries.items()} == {
            "Video-MME": "without subtitles", "MVBench": "all", "MLVU": "dev",
            "LongVideoBench": "validation, without subtitles",
        }  # fmt: skip
        lines = (RUNS / "vlmevalkit/LLaVA-OneVision-7B-tango-r0.1/records.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        own = [record for record in records if record["benchmark"].startswith("Video-MME")]
        right = sum(record["correct"] and not record["failed"] for record in own)
        found = entries["Video-MME"]
        assert (found["num_asked"], found["num_correct"]) == (len(own), right)
        assert found["accuracy"] == round(100 * right / len(own), 4)
        assert (found["num_questions"], found["num_failed"], found["num_frames"]) == (2700, 3, 32)
        assert found["kept_share"] == pytest.approx(67.333333 / 512, abs=1e-6)
        assert (found["hardware"], found["date"], found["name"]) == ("AMD EPYC, 2 CPUs", "2026-11-21", "tango")
        assert found["part"].startswith(f"{len(own)} of 2700 questions")

    def test_a_run_of_lmms_eval_and_the_page_of_it(self, tmp_path, capsys):
        link = ["--link", "https://example.org/a", "--elsewhere"]
        assert add(RUNS / "lmms_eval", tmp_path / "files", *link) == 0
        entries = [json.loads(path.read_text()) for path in sorted((tmp_path / "files").iterdir())]
        assert {entry["kind"] for entry in entries} == {"measured elsewhere"}
        assert {entry["source"]["link"] for entry in entries} == {"https://example.org/a"}
        output = tmp_path / "site" / "index.html"
        capsys.readouterr()
        for flags, reported in ([], True), (["--no-paper"], False):
            command = ["leaderboard", "build", "--results", str(tmp_path / "files"), "--output", str(output), *flags]
            assert main(command) == 0
            assert capsys.readouterr().out == f"{output}\n"
            text = output.read_text(encoding="utf-8")
            assert ("reported by the authors of Tango" in text) == reported
            assert text.count("measured elsewhere") >= len(entries)
        assert [path.name for path in output.parent.iterdir()] == ["index.html"]

    def test_the_same_run_again_is_the_same_file(self, tmp_path):
        write_lines(tmp_path / "run" / "records.jsonl", {"method": "none"}, _lines(), date="2026-11-21",
                    environment=ENVIRONMENT)  # fmt: skip
        for _ in range(2):
            assert add(tmp_path / "run", tmp_path / "files") == 0
        assert len(list((tmp_path / "files").iterdir())) == 1

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--seed", "-1"], "--seed must be a whole number from 0, got -1"),
            (["--link", "example.org"], "source.link: got 'example.org', expected an http or https address"),
        ],
    )
    def test_mistakes_leave_nothing_behind(self, tmp_path, capsys, options, said):
        write_lines(tmp_path / "run" / "records.jsonl", {"method": "none"}, _lines(), date="2026-11-21",
                    environment=ENVIRONMENT)  # fmt: skip
        assert add(tmp_path / "run", tmp_path / "files", *options) == 2
        assert said in one_line(capsys)
        assert not (tmp_path / "files").exists()

    def test_one_run_that_cannot_be_made_stops_all(self, tmp_path, capsys):
        for name, about in {"a": {"environment": ENVIRONMENT}, "b": {"environment": None}}.items():
            method = {"method": "tango", "retention_ratio": 0.1 if name == "a" else 0.2}
            write_lines(tmp_path / "run" / f"{name}.jsonl", method, _lines(), date="2026-11-21", **about)
        assert add(tmp_path / "run", tmp_path / "files") == 2
        assert "b.run.json: its environment has no versions" in one_line(capsys)
        assert not (tmp_path / "files").exists()

    def test_a_folder_without_a_finished_run(self, tmp_path, capsys):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "tango_args.json").write_text("{}")
        assert add(tmp_path / "run", tmp_path / "files") == 2
        assert "no finished run in" in one_line(capsys)


def _lines() -> list[dict[str, object]]:
    return [{"benchmark": "TangoMini", "question_id": i, "video_id": i, "correct": i > 2} for i in range(9)]


class TestCheck:
    def test_says_how_many_files_are_good(self, tmp_path, capsys):
        (tmp_path / "a.json").write_text(json.dumps(ENTRY))
        assert main(["leaderboard", "check", str(tmp_path / "a.json")]) == 0
        assert capsys.readouterr().out == "no mistake\n"
        (tmp_path / "b.json").write_text(json.dumps({**ENTRY, "date": "2026-11-22"}))
        assert main(["leaderboard", "check", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
        assert capsys.readouterr().out == "2 files without a mistake\n"

    def test_one_line_for_each_mistake(self, tmp_path, capsys):
        for name, change in {"a": {}, "b": {"accuracy": 840}, "c": {"date": "2026-02-30", "num_clips": 9999}}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps({**ENTRY, **change}))
        assert main(["leaderboard", "check", *sorted(map(str, tmp_path.iterdir()))]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        starts = [f"b.json: {name}" for name in ("accuracy",)] + [f"c.json: {name}" for name in ("date", "num_clips")]
        lines = said.err.splitlines()
        assert len(lines) == 3
        for line, start in zip(lines, starts, strict=True):
            assert line.startswith(f"tango: error: {tmp_path}/{start}: got ")
            assert ", expected " in line

    def test_what_ci_runs_needs_python_alone(self, tmp_path):
        """The commands of the workflow, as they stand there, without site-packages: nothing has to be installed."""
        workflow = yaml.safe_load((ROOT / ".github/workflows/leaderboard.yml").read_text(encoding="utf-8"))
        steps = [step["run"] for step in workflow["jobs"]["leaderboard"]["steps"] if "run" in step]
        assert [step.split()[:5] for step in steps] == [
            ["python", "-m", "tango", "leaderboard", "check"], ["python", "-m", "tango", "leaderboard", "build"]
        ]  # fmt: skip
        for step in steps:
            command = step.replace("python", f"'{sys.executable}' -S", 1).replace(
                "site/index.html", f"{tmp_path}/i.html"
            )
            done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "i.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_page_is_not_made_of_broken_files(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps({**ENTRY, "accuracy": 840}))
    output = tmp_path / "index.html"
    output.write_text("the page of yesterday")
    assert main(["leaderboard", "build", "--results", str(tmp_path), "--output", str(output)]) == 2
    assert "a.json: accuracy: got 840" in one_line(capsys)
    assert output.read_text() == "the page of yesterday"
