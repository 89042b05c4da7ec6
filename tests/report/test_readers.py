"""tango.report.records and readers: what is written is read back, real folders, and files that went wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tango.cli import main
from tango.errors import TangoError, WriteError
from tango.report.readers import read_results
from tango.report.records import SCHEMA, append_records, read_records, run_file, write_records
from tango.report.results import Run, choose
from tests.report.folders import everything, verdicts, write_run

RECORDED = Path(__file__).parents[1] / "data" / "results"
KIT = RECORDED / "vlmevalkit"
TANGO = {"method": "tango", "retention_ratio": 0.1}
ALL = "101101101101;11110000;101010;1111011"


def by_benchmark(*paths: Path) -> dict[str, Run]:
    runs = read_results(paths).runs
    assert len({run.benchmark.name for run in runs}) == len(runs)
    return {run.benchmark.name: run for run in runs}


def right(run: Run) -> list[bool]:
    return [question.correct for question in run.questions]


class TestFolders:
    def test_every_recorded_accuracy_is_found_again(self) -> None:
        results = read_results([KIT])
        assert results.notes == ()
        found = {(run.source.name, run.benchmark.name): run for run in results.runs}
        assert len(found) == 4 + 4 + 4 + 2
        for folder in KIT.iterdir():
            for key, entry in json.loads((folder / "tango_summary.json").read_text())["datasets"].items():
                name = key.removesuffix("_32frame").replace("MLVU_MCQ", "MLVU")
                run = found[folder.name, name]
                assert 100 * sum(right(run)) / len(run.questions) == pytest.approx(entry["accuracy_percent"])
                for group, percent in entry["groups_percent"].items():
                    members = [question.correct for question in run.questions if question.group == group]
                    assert 100 * sum(members) / len(members) == pytest.approx(percent)
                assert (run.model, run.num_frames) == ("LLaVA-OneVision-7B", 32)
                assert run.num_failed == entry["num_failures"]
                assert run.partial  # the data sets are miniatures
                assert run.limited == folder.name.endswith("-limit4")
                assert run.date.startswith("2026-11-21T")

    def test_method_tokens_and_clips_of_a_recorded_run(self) -> None:
        runs = by_benchmark(KIT / "LLaVA-OneVision-7B-tango-r0.1")
        video_mme = runs["Video-MME"]
        assert (video_mme.method["method"], video_mme.method["options"]["retention_ratio"]) == ("tango", 0.1)
        assert video_mme.tokens_before == 512
        assert 0.1 * 512 < (video_mme.tokens_after or 0) < 0.2 * 512
        assert [question.video_id for question in video_mme.questions] == [f"vid{i % 4}" for i in range(9)]
        assert [question.group for question in video_mme.questions[:3]] == ["short", "medium", "long"]
        clips = {question.video_id for question in runs["MVBench"].questions}
        assert len(clips) == 4 + 3  # mv0.mp4 of one task is not mv0.mp4 of the other
        assert {question.video_id for question in runs["MLVU"].questions} == {
            f"./MLVU/video/{task}/ml{k}.mp4" for task in ("1_plotQA", "4_count", "5_order") for k in range(2)
        }
        assert {question.group for question in runs["LongVideoBench"].questions} == {"15", "60", "600", "3600"}

    def test_the_recorded_run_of_lmms_eval(self) -> None:
        (run,) = read_results([RECORDED / "lmms_eval"]).runs
        assert (run.model, run.benchmark.name, run.method["method"]) == ("llava-ov2", "Video-MME", "tango")
        assert sum(right(run)) / len(run.questions) == 0.125  # as in its results.json
        assert (len(run.questions), run.num_expected, run.partial) == (16, 2700, True)
        assert (run.num_frames, run.num_failed) == (8, 4)
        assert (run.tokens_before, run.tokens_after) == (128, None)  # that mean is younger than the run
        assert {question.video_id for question in run.questions} >= {"plain", "broken", "missing"}
        assert {question.group for question in run.questions} == {"short", "medium", "long"}

    @pytest.mark.usefixtures("miniature")
    def test_made_folders(self, tmp_path: Path) -> None:
        write_run(tmp_path, TANGO, everything(ALL))
        runs = by_benchmark(tmp_path)
        assert [right(runs[name]) for name in ("Video-MME", "MVBench", "LongVideoBench", "MLVU")] == [
            verdicts(text) for text in ALL.split(";")
        ]
        assert not any(run.partial for run in runs.values())
        assert {(run.tokens_before, run.tokens_after) for run in runs.values()} == {(6272, 640)}

    @pytest.mark.usefixtures("miniature")
    def test_fewer_questions_than_the_benchmark_has(self, tmp_path: Path) -> None:
        write_run(tmp_path, TANGO, {"Video-MME": verdicts("1011"), "MVBench": verdicts("11110000")})
        assert {name: run.partial for name, run in by_benchmark(tmp_path).items()} == {
            "Video-MME": True,
            "MVBench": False,
        }

    @pytest.mark.usefixtures("miniature")
    def test_a_limit_makes_a_run_partial_whatever_its_size(self, tmp_path: Path) -> None:
        write_run(tmp_path, TANGO, everything(ALL), limit=100)
        assert all(run.partial for run in read_results([tmp_path]).runs)

    def test_data_sets_that_failed_are_noted(self, tmp_path: Path) -> None:
        folder = write_run(
            tmp_path, TANGO, {"MVBench": verdicts("10")}, errors={"Video-MME": "RuntimeError:\n  no memory"}
        )
        results = read_results([tmp_path])
        assert [run.benchmark.name for run in results.runs] == ["MVBench"]
        assert results.notes == (f"{folder}: Video-MME failed: RuntimeError: no memory",)

    def test_runs_without_records_are_noted(self, tmp_path: Path) -> None:
        started, stopped, others = (tmp_path / name for name in ("kit", "lmms", "stock"))
        for folder in (started, stopped / "journals", others):
            folder.mkdir(parents=True)
        (started / "tango_args.json").write_text("{}")
        (others / "1_results.json").write_text("{}")
        results = read_results([tmp_path])
        assert results.runs == ()
        assert results.notes == (
            f"{started} is unfinished: it has no records.jsonl",
            f"{stopped} is unfinished: lmms-eval has not written its results there",
            f"{others / '1_results.json'} has no records, which need one of Tango's models and --log_samples",
        )

    @pytest.mark.parametrize(("folder", "module"), [("vlmevalkit", "tango_vlmeval"), ("lmms_eval", "tango_lmms_eval")])
    def test_results_of_releases_without_records_name_the_way_out(
        self, tmp_path: Path, folder: str, module: str
    ) -> None:
        shutil.copytree(
            RECORDED / folder, tmp_path / "old", ignore=shutil.ignore_patterns("*records.jsonl", "*run.json")
        )
        write_run(tmp_path, TANGO, {"MVBench": verdicts("10")})
        results = read_results([tmp_path])
        assert [run.benchmark.name for run in results.runs] == ["MVBench"]  # the others are shown
        assert len(results.notes) == len(
            list(tmp_path.rglob("*_efficiency.json" if "lmms" in folder else "tango_summary.json"))
        )
        for note in results.notes:
            assert note.startswith(str(tmp_path / "old"))
            assert "is left out: it has no records" in note
            assert f"`python -m {module}.records {tmp_path}`" in note


class TestRunFile:
    LINE: ClassVar[dict[str, Any]] = {"benchmark": "b", "question_id": 1, "video_id": "v", "correct": True}
    RUN: ClassVar[dict[str, Any]] = {"model": "m", "method": {"method": "none"}}

    def test_names(self) -> None:
        names = {"records.jsonl": "run.json", "x_records.jsonl": "x_run.json", "tango.jsonl": "tango.run.json"}
        assert {name: run_file(Path("a") / name) for name in names} == {k: Path("a") / v for k, v in names.items()}

    def test_the_nearer_word_counts(self, tmp_path: Path) -> None:
        run = {
            **self.RUN, "num_frames": 32, "date": "2026-01-01", "mean_tokens_before": 100, "num_failed": 7,
            "benchmarks": {"b": {"num_frames": 16, "num_questions": 3, "mean_tokens_after": 10}},
        }  # fmt: skip
        lines = [self.LINE, {**self.LINE, "question_id": 2, "tokens_after": 30, "failed": True}]
        other = {**self.LINE, "benchmark": "c", "model": "n", "num_frames": 8}
        write_records(tmp_path / "x.jsonl", run, [*lines, other])
        first, second = read_results([tmp_path]).runs  # found by the file of its run
        assert (first.model, first.num_frames, first.num_expected, first.date) == ("m", 16, 3, "2026-01-01")
        assert (first.tokens_before, first.tokens_after, first.num_failed) == (100, 30, 1)
        assert (second.model, second.num_frames, second.num_expected, second.num_failed) == ("n", 8, None, 7)
        assert (second.tokens_before, second.tokens_after) == (100, None)

    def test_a_question_is_known_by_its_line_and_read_once(self, tmp_path: Path) -> None:
        path, lines = tmp_path / "records.jsonl", [self.LINE, {**self.LINE, "benchmark": "c"}]
        with pytest.raises(TypeError, match=r"question 1 of b is there twice, first in line 1"):
            write_records(path, self.RUN, [*lines, self.LINE])
        write_records(path, self.RUN, lines)
        append_records(path, [self.LINE], "all is kept")
        with pytest.raises(TangoError, match=r"line 3: question 1 of b is there twice, first in line 1"):
            read_results([tmp_path])

    def test_what_is_appended_is_read_and_a_cut_off_line_is_noted(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        write_records(path, self.RUN, [])
        append_records(path, [self.LINE], "all is kept")
        append_records(path, [{**self.LINE, "question_id": 2}], "all is kept")
        with path.open("ab") as file:
            file.write(b'{"benchmark": "b", "quest')
        ((run,), (note,)) = read_records(path)
        assert [question.question_id for question in run.questions] == ["1", "2"]
        assert note.startswith(f"{path}: its last line is cut off and left out")
        with pytest.raises(WriteError, match="all is kept"):
            append_records(tmp_path / "nowhere" / "records.jsonl", [self.LINE], "all is kept")

    def test_what_is_no_record_is_not_written(self, tmp_path: Path) -> None:
        path = tmp_path / "records.jsonl"
        with pytest.raises(TypeError, match="correct must be true or false, got 1"):
            write_records(path, self.RUN, [{**self.LINE, "correct": 1}])
        with pytest.raises(TypeError, match=r"num_frames must be a whole number, got 1\.5"):
            write_records(path, {**self.RUN, "num_frames": 1.5}, [self.LINE])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("run", "message"),
        [
            ("{", "Expecting"),
            ("[1]", r"expected an object, got \[1\]"),
            ("{}", "it has no 'schema'"),
            ('{"schema": 2}', f"schema must be {SCHEMA}, got 2"),
            ('{"schema": true}', f"schema must be {SCHEMA}, got True"),
            ('{"schema": null}', f"schema must be {SCHEMA}, got None"),
            ('{"schema": 1, "model": 5}', "model must be text, got 5"),
            ('{"schema": 1, "method": {"method": 5}}', "method must be an object such as"),
            ('{"schema": 1, "settings": 5}', "settings must be an object, got 5"),
            ('{"schema": 1, "benchmarks": {"b": 5}}', "benchmarks: b must be an object, got 5"),
            (
                '{"schema": 1, "benchmarks": {"b": {"num_frames": "x"}}}',
                "benchmarks: b: num_frames must be a whole number",
            ),
            ("[" * 100_000, "it is nested too deeply"),
        ],
        ids=lambda value: value[:40],
    )
    def test_mistakes(self, tmp_path: Path, run: str, message: str) -> None:
        write_records(tmp_path / "records.jsonl", self.RUN, [self.LINE])
        (tmp_path / "run.json").write_text(run)
        with pytest.raises(TangoError, match=message) as error:
            read_results([tmp_path])
        assert str(error.value).startswith(f"cannot read {tmp_path / 'run.json'}: ")


class TestJsonLines:
    LINE: ClassVar[dict[str, Any]] = {
        "model": "tango-mini", "method": {"method": "none"}, "benchmark": "EgoSchema", "question_id": 0,
        "video_id": "clip_0000", "correct": True,
    }  # fmt: skip

    def write(self, path: Path, *changes: dict[str, Any]) -> Path:
        path.write_text("".join(json.dumps({**self.LINE, **change}) + "\n" for change in changes))
        return path

    def test_lines_are_runs(self, tmp_path: Path) -> None:
        tango = {"method": TANGO, "date": "2026-02-03", "tokens_before": 784, "group": "colour"}
        path = self.write(
            tmp_path / "mine.jsonl", {}, {"question_id": 1, "correct": False},
            {**tango, "tokens_after": 80}, {**tango, "question_id": 1, "tokens_after": 90},
        )  # fmt: skip
        none, pruned = read_results([path]).runs
        assert (right(none), right(pruned)) == ([True, False], [True, True])
        assert (pruned.tokens_before, pruned.tokens_after, pruned.date) == (784, 85, "2026-02-03")
        assert (none.tokens_before, none.num_expected, none.partial) == (None, None, False)
        assert pruned.questions[1].group == "colour"

    def test_parts_of_a_benchmark(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "mine.jsonl", {"num_questions": 3}, {"question_id": 1, "num_questions": 3})
        assert read_results([path]).runs[0].partial

    def test_in_a_folder_the_name_says_what_they_are(self, tmp_path: Path) -> None:
        self.write(tmp_path / "mini-records.jsonl", {})
        (tmp_path / "other.jsonl").write_text("{}\n")
        assert len(read_results([tmp_path]).runs) == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"correct": 1}, "line 2: correct must be true or false, got 1"),
            ({"model": None}, "line 2: model must be text, got None"),
            ({"model": {"a": 1}}, "line 2: model must be text, got {'a': 1}"),
            ({"benchmark": 5}, "line 2: benchmark must be text, got 5"),
            ({"method": "tango"}, "line 2: method must be an object, got 'tango'"),
            ({"method": {}}, "line 2: method must be an object such as .*, got {}"),
            ({"method": {"method": ["tango"]}}, "line 2: method must be an object such as"),
            (
                {"method": {"method": "tango", "options": [1]}},
                r"line 2: options of a method must be an object, got \[1\]",
            ),
            (
                {"method": {"method": "tango", "options": {"retention_ratio": "a tenth"}}},
                "line 2: a method's retention ratio must be a number, got 'a tenth'",
            ),
            (
                {"method": {"method": "tango", "mean_retention_ratio": [0.1]}},
                r"line 2: a method's retention ratio must be a number, got \[0.1\]",
            ),
            ({"question_id": [1]}, "line 2: question_id must be text or a number"),
            ({"schema": 2}, "line 2: schema must be 1, got 2"),
            ({"video_id": {}}, "line 2: video_id must be text or a number, got {}"),
            ({"group": ["a"]}, "line 2: group must be text or a number"),
            ({"date": 2026}, "line 2: date must be text, got 2026"),
            ({"num_questions": "many"}, "line 2: num_questions must be a whole number, got 'many'"),
            ({"num_frames": -1}, "line 2: num_frames must be a whole number, got -1"),
            ({"tokens_before": "784"}, "line 2: tokens_before must be a number, got '784'"),
            ({"tokens_after": float("inf")}, "line 2: tokens_after must be a number, got inf"),
            ({"failed": 0}, "line 2: failed must be true or false, got 0"),
            ({"question_id": 1}, "line 2: question 1 .* is there twice, first in line 1"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        path = self.write(tmp_path / "mine.jsonl", {"question_id": 1}, change)
        with pytest.raises(TangoError, match=message) as error:
            read_results([path])
        assert str(error.value).startswith(f"cannot read {path}: ")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"model": ', "line 2: Expecting value"),
            ("[1]", "line 2: expected an object, got [1]"),
            ('{"a":' * 100_000, "line 2: it is nested too deeply"),
            ("[" * 100_000, "line 2: it is nested too deeply"),
            ("9" * 5000, "line 2: "),
        ],
        ids=lambda value: value[:20],
    )
    @pytest.mark.parametrize("command", ["runs", "table"])
    def test_broken_lines_end_a_command_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str, command: str
    ) -> None:
        path = self.write(tmp_path / "mine.jsonl", {})
        path.write_text(path.read_text() + line + "\n")
        assert main([command, *(["1"] if command == "table" else []), "--results", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"tango: error: cannot read {path}: {message}")
        assert err.count("\n") == 1

    def test_methods_that_cannot_be_built_any_more_stay_as_they_are(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        methods = [
            {"method": "forgotten"}, {"method": "tango", "options": {"colour": 1}}, {"method": "tango", "colour": 1},
            {"method": "tango", "options": {"retention_ratio": 7}}, {"method": "tango", "options": {"alpha": {}}},
            {"method": "tango", "options": {"segmentation": []}}, {"method": "none", "layer_pruner": [1]},
        ]  # fmt: skip
        path = self.write(tmp_path / "mine.jsonl", *({"method": method} for method in methods))
        assert main(["runs", "--results", str(path)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2 + len(methods)

    def test_a_text_that_is_no_json_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "mine.jsonl").write_text("model,correct")
        with pytest.raises(TangoError, match=r"mine.jsonl: line 1: expected a JSON object"):
            read_results([tmp_path / "mine.jsonl"])

    def test_clips_that_are_not_recorded(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "mine.jsonl", {"video_id": None})
        assert read_results([path]).runs[0].questions[0].video_id is None

    def test_texts_with_other_line_ends_are_one_line(self, tmp_path: Path) -> None:
        record = {**self.LINE, "model": "a\u2028b\x85c\x0cd", "note": "\u2029"}
        (tmp_path / "mine.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n\n", encoding="utf-8")
        assert read_results([tmp_path / "mine.jsonl"]).runs[0].model == record["model"]

    @pytest.mark.parametrize("name", ["model", "method", "benchmark", "question_id", "video_id", "correct"])
    def test_fields_that_are_missing(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text(json.dumps({key: value for key, value in self.LINE.items() if key != name}))
        with pytest.raises(TangoError, match=f"mine.jsonl: line 1: it has no '{name}'"):
            read_results([path])


class TestWhichRun:
    @pytest.mark.usefixtures("miniature")
    def test_whole_before_partial_then_the_latest(self, tmp_path: Path) -> None:
        whole = {"Video-MME": verdicts("1" * 12)}
        part = {"Video-MME": verdicts("1" * 5)}
        old = write_run(tmp_path / "a", TANGO, whole, date="2026-01-01")
        new = write_run(tmp_path / "b", TANGO, whole, date="2026-01-02")
        partial = write_run(tmp_path / "c", TANGO, part, date="2026-01-03")
        (best,), notes = choose(read_results([tmp_path]).runs)
        assert best.source == new
        assert notes == [
            f"{partial} (Video-MME) is left out: {old} is whole",
            f"{old} (Video-MME) is left out: {new} is newer",
        ]

    def test_other_methods_and_benchmarks_are_no_repetitions(self, tmp_path: Path) -> None:
        write_run(tmp_path, TANGO, everything(ALL))
        write_run(tmp_path, {**TANGO, "alpha": 2}, everything(ALL))
        runs, notes = choose(read_results([tmp_path]).runs)
        assert (len(runs), notes) == (8, [])


class TestNothing:
    def test_a_folder_without_results(self, tmp_path: Path) -> None:
        with pytest.raises(TangoError, match=r"no results in .*: expected files called \*records.jsonl"):
            read_results([tmp_path])

    def test_a_path_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(TangoError, match="nowhere does not exist"):
            read_results([tmp_path / "nowhere"])
