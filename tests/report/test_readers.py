"""tango.report.readers: real result folders of both toolkits, made ones, and those of runs that went wrong."""

from __future__ import annotations

import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tango.cli import main
from tango.errors import TangoError
from tango.report.readers import read_results
from tango.report.results import Run, choose
from tango.report.xlsx import MAX_BYTES, read_xlsx
from tests.report.folders import everything, verdicts, write_lmms_eval, write_vlmevalkit

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


class TestVlmevalkit:
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

    @pytest.mark.usefixtures("miniature")
    def test_made_folders(self, tmp_path: Path) -> None:
        write_vlmevalkit(tmp_path, TANGO, everything(ALL))
        runs = by_benchmark(tmp_path)
        assert [right(runs[name]) for name in ("Video-MME", "MVBench", "LongVideoBench", "MLVU")] == [
            verdicts(text) for text in ALL.split(";")
        ]
        assert not any(run.partial for run in runs.values())
        assert {(run.tokens_before, run.tokens_after) for run in runs.values()} == {(6272, 640)}

    @pytest.mark.usefixtures("miniature")
    def test_fewer_questions_than_the_benchmark_has(self, tmp_path: Path) -> None:
        write_vlmevalkit(tmp_path, TANGO, {"Video-MME": verdicts("1011"), "MVBench": verdicts("11110000")})
        assert {name: run.partial for name, run in by_benchmark(tmp_path).items()} == {
            "Video-MME": True,
            "MVBench": False,
        }

    @pytest.mark.usefixtures("miniature")
    def test_a_limit_makes_a_run_partial_whatever_its_size(self, tmp_path: Path) -> None:
        write_vlmevalkit(tmp_path, TANGO, everything(ALL), limit=100)
        assert all(run.partial for run in read_results([tmp_path]).runs)

    def test_data_sets_that_failed_are_noted(self, tmp_path: Path) -> None:
        folder = write_vlmevalkit(
            tmp_path, TANGO, {"MVBench": verdicts("10")}, errors={"Video-MME": "RuntimeError:\n  no memory"}
        )
        results = read_results([tmp_path])
        assert [run.benchmark.name for run in results.runs] == ["MVBench"]
        assert results.notes == (f"{folder}: Video-MME failed: RuntimeError: no memory",)

    def test_a_run_without_summary_or_scores_is_noted(self, tmp_path: Path) -> None:
        first = write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("10")})
        (first / "tango_summary.json").unlink()
        second = write_vlmevalkit(tmp_path, {"method": "none"}, {"MVBench": verdicts("10")})
        next(second.glob("*_score.tsv")).unlink()
        results = read_results([tmp_path])
        assert results.runs == ()
        assert set(results.notes) == {
            f"{first} is unfinished: it has no tango_summary.json",
            f"{second}: MVBench has no scores",
        }

    def test_scores_that_are_not_the_summarys(self, tmp_path: Path) -> None:
        folder = write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("1100")})
        path = next(folder.glob("*_score.tsv"))
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
        with pytest.raises(TangoError, match=r"MVBench has \(3, 2\) questions and right ones, its summary \(4, 2\)"):
            read_results([tmp_path])

    @pytest.mark.parametrize(
        ("pattern", "content", "message"),
        [
            ("tango_summary.json", b'{"model": "LLaVA', "Unterminated string"),
            ("tango_summary.json", b"[1]", "TypeError"),
            ("tango_summary.json", b'{"model": "m"}', "KeyError 'settings'"),
            ("tango_summary.json", b"\xff\xfe", "decode"),
            ("*_score.tsv", b"index\tvideo\tscore\n0\tv\t1\n", "no column 'prefix'"),
            ("tango_summary.json", b"[" * 100_000, "it is nested too deeply"),
            ("tango_args.json", b"3", "TypeError"),
            ("*_score.tsv", b"index\tprefix\tvideo\n0\tp\tv\n", "no column 'score'"),
            ("*_score.tsv", b"\xff\xfe", "decode"),
        ],
    )
    def test_unreadable_files_are_named(self, tmp_path: Path, pattern: str, content: bytes, message: str) -> None:
        folder = write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("10")})
        path = next(folder.glob(pattern))
        path.write_bytes(content)
        with pytest.raises(TangoError, match=message) as error:
            read_results([tmp_path])
        assert str(path) in str(error.value)
        assert "run that evaluation again, or leave its folder out" in str(error.value)

    def test_a_question_that_is_there_twice(self, tmp_path: Path) -> None:
        folder = write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("10")})
        path = next(folder.glob("*_score.tsv"))
        path.write_text(path.read_text().replace("\n1\t", "\n0\t"))
        with pytest.raises(TangoError, match="question 0 of MVBench is there twice"):
            read_results([tmp_path])


class TestLmmsEval:
    def test_the_recorded_run(self) -> None:
        (run,) = read_results([RECORDED / "lmms_eval"]).runs
        assert (run.model, run.benchmark.name, run.method["method"]) == ("llava-ov2", "Video-MME", "tango")
        assert sum(right(run)) / len(run.questions) == 0.125  # as in its results.json
        assert (len(run.questions), run.num_expected, run.partial) == (16, 2700, True)
        assert run.num_frames == 8
        assert (run.tokens_before, run.tokens_after) == (128, None)  # that mean is younger than the run
        assert {question.video_id for question in run.questions} >= {"plain", "broken", "missing"}
        assert {question.group for question in run.questions} == {"short", "medium", "long"}

    @pytest.mark.usefixtures("miniature")
    def test_the_other_benchmarks(self, tmp_path: Path) -> None:
        samples: dict[str, list[dict[str, Any]]] = {
            "mvbench_action_count": [{"mvbench_accuracy": {"score": score}} for score in (1, 0, 1.0, 0)],
            "mvbench_state_change": [{"mvbench_accuracy": {"score": score}} for score in (1, 1, 0, 0)],
            "longvideobench_val_v": [
                {"lvb_acc": {"id": f"a_b_{i}", "duration_group": 15, "answer": "A", "parsed_pred": letter}}
                for i, letter in enumerate("AABCDA")
            ],
            "mlvu_dev": [
                {"mlvu_percetion_score": {"task_type": "ego", "answer": "A", "pred_answer": letter}}
                for letter in "AAAABBB"
            ],
        }
        write_lmms_eval(tmp_path / "ov", TANGO, samples)
        runs = by_benchmark(tmp_path)
        assert {name: sum(right(run)) for name, run in runs.items()} == {"MVBench": 4, "LongVideoBench": 3, "MLVU": 4}
        assert not any(run.partial for run in runs.values())
        assert {question.group for question in runs["MVBench"].questions} == set(list(samples)[:2])
        assert {question.video_id for question in runs["LongVideoBench"].questions} == {"a_b"}
        assert {question.video_id for name in ("MVBench", "MLVU") for question in runs[name].questions} == {None}
        assert runs["MLVU"].model == "llava-onevision-qwen2-7b-ov"

    def test_a_task_that_is_not_known_here(self, tmp_path: Path) -> None:
        lines = [{"some_score": {"score": score, "videoID": "v"}} for score in (1.0, 0.0)]
        write_lmms_eval(tmp_path / "ov", TANGO, {"egoschema": lines})
        (run,) = read_results([tmp_path]).runs
        assert (run.benchmark.name, right(run), run.num_expected, run.partial) == ("egoschema", [True, False], 2, False)

    def test_results_go_with_the_method_that_was_written_next(self, tmp_path: Path) -> None:
        lines = {"egoschema": [{"some_score": {"score": 1.0}}]}
        for minute, method in enumerate(("tango", "holitom", "uniform")):
            times = {"time": f"20260101_120{minute}00", "efficiency_time": f"20260101_120{minute}07"}
            write_lmms_eval(tmp_path / "ov", {"method": method}, lines, **times)
        runs = read_results([tmp_path]).runs
        assert [(run.source.name[:15], run.method["method"]) for run in runs] == [
            ("20260101_120000", "tango"), ("20260101_120100", "holitom"), ("20260101_120200", "uniform"),
        ]  # fmt: skip
        (tmp_path / "ov" / "20260101_120107_efficiency.json").unlink()
        results = read_results([tmp_path])
        assert [run.method["method"] for run in results.runs] == ["tango", "uniform"]
        assert "results of 20260101_120100 have no efficiency.json" in results.notes[0]

    def test_a_limit_and_a_run_without_results(self, tmp_path: Path) -> None:
        write_lmms_eval(tmp_path / "ov", TANGO, {"egoschema": [{"a": {"score": 1.0}}]}, limit=1)
        (tmp_path / "other" / "journals" / "tango-r0.1-0000").mkdir(parents=True)
        results = read_results([tmp_path])
        assert [run.partial for run in results.runs] == [True]
        assert results.notes == (f"{tmp_path / 'other'} is unfinished: lmms-eval has not written its results there",)

    @pytest.mark.parametrize(
        ("pattern", "content", "message"),
        [
            ("*_results.json", "{", "Expecting"),
            ("*_results.json", "{}", "KeyError 'n-samples'"),
            ("*_samples_videomme.jsonl", '{"doc_id": 0', "line 1: Expecting"),
            ("*_samples_videomme.jsonl", "[]", "line 1: expected an object"),
            ("*_samples_videomme.jsonl", '{"doc_id": 0}', "line 1 has no 'videomme_perception_score'"),
            ("*_samples_videomme.jsonl", '{"doc_id": 0, "videomme_perception_score": 1}', "line 1: "),
            (
                "*_samples_videomme.jsonl",
                '\n{"doc_id": 0, "videomme_perception_score": {"score": 1, "videoID": [], "duration": "short"}}',
                r"line 2: the clip must be text or a number, got \[\]",
            ),
            ("*_samples_videomme.jsonl", '{"a":' * 100_000, "line 1: it is nested too deeply"),
            ("*_efficiency.json", "", "Expecting value"),
            ("*_efficiency.json", "[" * 100_000, "it is nested too deeply"),
            ("*_efficiency.json", "[]", "TypeError"),
            ("*_efficiency.json", '{"config": {"method": "tango"}}', "method must be an object"),
            (
                "*_efficiency.json",
                '{"config": {"method": {"method": "none"}, "pretrained": 5}, "means": {}}',
                "checkpoints and tasks must be text, got 5",
            ),
            ("*_efficiency.json", '{"config": {"method": {"method": "none"}}, "means": 1}', "must be objects"),
        ],
        ids=lambda value: value[:30],
    )
    def test_unreadable_files_are_named(self, tmp_path: Path, pattern: str, content: str, message: str) -> None:
        shutil.copytree(RECORDED / "lmms_eval", tmp_path / "logs")
        path = next((tmp_path / "logs").rglob(pattern))
        path.write_text(content)
        with pytest.raises(TangoError, match=message) as error:
            read_results([tmp_path])
        assert str(path) in str(error.value)


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
            ({"video_id": None}, "line 2: video_id must be text or a number, got None"),
            ({"video_id": {}}, "line 2: video_id must be text or a number, got {}"),
            ({"group": ["a"]}, "line 2: group must be text or a number"),
            ({"date": 2026}, "line 2: date must be text, got 2026"),
            ({"num_questions": "many"}, "line 2: num_questions must be a whole number, got 'many'"),
            ({"num_frames": -1}, "line 2: num_frames must be a whole number, got -1"),
            ({"tokens_before": "784"}, "line 2: tokens_before must be a number, got '784'"),
            ({"tokens_after": float("inf")}, "line 2: tokens_after must be a number, got inf"),
            ({"failed": 0}, "line 2: failed must be true or false, got 0"),
            ({"question_id": 1}, "question 1 .* is there twice"),
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
            ("[1]", "line 2: expected an object"),
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
        old = write_vlmevalkit(tmp_path / "a", TANGO, whole, date="2026-01-01")
        new = write_vlmevalkit(tmp_path / "b", TANGO, whole, date="2026-01-02")
        partial = write_vlmevalkit(tmp_path / "c", TANGO, part, date="2026-01-03")
        (best,), notes = choose(read_results([tmp_path]).runs)
        assert best.source == new
        assert notes == [
            f"{partial} (Video-MME) is left out: {old} is whole",
            f"{old} (Video-MME) is left out: {new} is newer",
        ]

    def test_other_methods_and_benchmarks_are_no_repetitions(self, tmp_path: Path) -> None:
        write_vlmevalkit(tmp_path, TANGO, everything(ALL))
        write_vlmevalkit(tmp_path, {**TANGO, "alpha": 2}, everything(ALL))
        runs, notes = choose(read_results([tmp_path]).runs)
        assert (len(runs), notes) == (8, [])


class TestNothing:
    def test_a_folder_without_results(self, tmp_path: Path) -> None:
        with pytest.raises(TangoError, match=r"no results in .*: expected folders with tango_summary.json"):
            read_results([tmp_path])

    def test_a_path_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(TangoError, match="nowhere does not exist"):
            read_results([tmp_path / "nowhere"])


class TestXlsx:
    SHEET = (
        '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
        '<row><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr"><is><t>b</t></is></c>'
        '<c r="C1" t="s"><v>1</v></c></row>'
        '<row><c r="A2"><v>3</v></c><c r="B2"><v>-1.5E2</v></c><c r="C2" t="b"><v>1</v></c></row>'
        '<row><c r="A3" t="str"><v>text</v></c><c r="C3" t="e"><v>#N/A</v></c></row>'
        "</sheetData></worksheet>"
    )
    SHARED = (
        '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
        "<si><t>a</t></si><si><r><t>two </t></r><r><t>runs</t></r></si></sst>"
    )

    def write(self, path: Path, sheet: str) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("xl/worksheets/sheet1.xml", sheet)
            archive.writestr("xl/sharedStrings.xml", self.SHARED)
        return path

    def test_every_kind_of_cell(self, tmp_path: Path) -> None:
        assert read_xlsx(self.write(tmp_path / "t.xlsx", self.SHEET)) == [
            {"a": 3, "b": -150.0, "two runs": True},
            {"a": "text", "b": None, "two runs": None},
        ]

    def test_a_table_of_the_toolkit(self) -> None:
        name = "LLaVA-OneVision-7B-none"
        rows = read_xlsx(KIT / name / f"{name}_MVBench_32frame_score.xlsx")
        assert len(rows) == 8
        assert rows[0] == {
            "task_type": "Action Sequence", "prefix": "video/star/Charades_v1_480/", "data_type": "video",
            "bound": True, "start": 0.1, "end": 0.5, "video": "mv0.mp4", "question": "Question 0: what colour?",
            "answer": "e", "candidates": "['e', '7']", "index": 0, "prediction": "[Z] failed", "score": 0,
        }  # fmt: skip

    def test_a_file_that_is_cut_off_is_named(self, tmp_path: Path) -> None:
        shutil.copytree(KIT / "LLaVA-OneVision-7B-none", tmp_path / "run")
        path = next((tmp_path / "run").glob("*MLVU*_score.xlsx"))
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(TangoError, match="not a readable Excel file") as error:
            read_results([tmp_path])
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("stated", [None, 100])
    def test_a_file_that_unpacks_to_too_much_is_refused_before_it_has(
        self, tmp_path: Path, stated: int | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A tenth of a megabyte, a thousand times as much unpacked; one says so, the other states a small size."""
        write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("10")})
        path = next(tmp_path.rglob("*_score.tsv"))
        path.unlink()
        path = path.with_suffix(".xlsx")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("xl/worksheets/sheet1.xml", "w") as sheet:
                for _ in range(100):
                    sheet.write(b"<row><c/></row>" * 70_000)
            if stated is not None:
                archive.infolist()[0].file_size = stated
        assert path.stat().st_size < 1e6
        tracemalloc.start()
        assert main(["runs", "--results", str(tmp_path)]) == 2
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_BYTES
        tracemalloc.stop()
        err = capsys.readouterr().err
        assert err.startswith(f"tango: error: cannot read {path}: ")
        assert ("unpacks to more than 64 MiB" in err) is (stated is None)

    @pytest.mark.parametrize("damage", ["packing", "password", "stream"])
    def test_other_damages(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "t.xlsx"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("xl/worksheets/sheet1.xml", self.SHEET)
        data = bytearray(path.read_bytes())
        local, central = 0, data.index(b"PK\1\2")
        if damage == "packing":
            data[local + 8] = data[central + 10] = 99
        elif damage == "password":
            data[local + 6] |= 1
            data[central + 8] |= 1
        else:
            start = 30 + len("xl/worksheets/sheet1.xml")
            data[start : start + 20] = b"\xff" * 20
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a readable Excel file"):
            read_xlsx(path)

    @pytest.mark.parametrize("sheet", ["<worksheet>", "<worksheet/>", SHEET.replace("<v>1</v>", "<v>7</v>", 1)])
    def test_sheets_that_are_none(self, tmp_path: Path, sheet: str) -> None:
        with pytest.raises(ValueError, match="not a"):
            read_xlsx(self.write(tmp_path / "t.xlsx", sheet))
