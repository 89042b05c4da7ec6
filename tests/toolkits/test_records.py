"""Records made of what the toolkits leave: real folders, made ones, and files that are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tango import TangoError
from tango.report import benchmarks
from tango.report.readers import read_results
from tango.report.records import read_run
from tests.report.folders import MINIATURE, everything, verdicts
from tests.toolkits.old_results import write_lmms_eval, write_vlmevalkit

RECORDED = Path(__file__).parents[1] / "data" / "results"
TANGO = {"method": "tango", "retention_ratio": 0.1}
ALL = "101101101101;11110000;101010;1111011"
SCORES = {"videoID": "v", "task_category": "count"}
WRONG = [{"accuracy": {**SCORES, "score": 0.0}} for _ in range(20)]


def made_by(module: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the command on a folder of an earlier release prints; stderr, if it refuses."""
    from importlib import import_module

    monkeypatch.setattr("sys.argv", ["records", str(folder)])
    capsys.readouterr()
    code = import_module(f"{module}.records").main()
    out, err = capsys.readouterr()
    assert code == (2 if err.startswith("error") else 0)
    return err if code else out


@pytest.mark.parametrize(("folder", "module"), [("vlmevalkit", "tango_vlmeval"), ("lmms_eval", "tango_lmms_eval")])
def test_recorded_folders_give_the_records_that_are_kept(
    folder: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ignore = shutil.ignore_patterns("*records.jsonl", "*run.json")
    shutil.copytree(RECORDED / folder, tmp_path / folder, ignore=ignore)
    printed = made_by(module, tmp_path, capsys, monkeypatch).splitlines()
    kept = sorted(path.relative_to(RECORDED) for path in (RECORDED / folder).rglob("*records.jsonl"))
    assert printed == [str(tmp_path / path) for path in kept]
    for path in kept:
        for name in (path.name, path.name.replace("records.jsonl", "run.json")):
            assert (tmp_path / path).with_name(name).read_text() == (RECORDED / path).with_name(name).read_text()
    assert made_by(module, tmp_path, capsys, monkeypatch) == ""  # once


class TestVlmevalkit:
    def test_every_benchmark(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(benchmarks, "BENCHMARKS", MINIATURE)
        write_vlmevalkit(tmp_path, TANGO, everything(ALL), failed={"Video-MME": 2})
        made_by("tango_vlmeval", tmp_path, capsys, monkeypatch)
        runs = {run.benchmark.name: run for run in read_results([tmp_path]).runs}
        assert [
            [question.correct for question in runs[name].questions]
            for name in ("Video-MME", "MVBench", "LongVideoBench", "MLVU")
        ] == [verdicts(text) for text in ALL.split(";")]
        assert not any(run.partial for run in runs.values())
        assert {(run.model, run.tokens_before, run.tokens_after) for run in runs.values()} == {
            ("LLaVA-OneVision-7B", 6272, 640)
        }
        assert (runs["Video-MME"].num_failed, runs["MLVU"].num_failed) == (2, 0)

    def test_two_entries_on_one_data_set_are_two_runs(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_vlmevalkit(tmp_path, TANGO, {"MLVU_MCQ": verdicts("110"), "Video-MME": verdicts("0111")})
        renamed = {"MLVU_MCQ_32frame": "short", "Video-MME_32frame": "long"}
        for path in folder.iterdir():
            text = path.read_text()
            for old, new in renamed.items():
                text, path = text.replace(old, new), path.rename(path.with_name(path.name.replace(old, new)))
            path.write_text(
                text.replace('"dataset": "MLVU_MCQ"', '"dataset": "Video-MME"').replace("task_type", "duration")
            )
        made_by("tango_vlmeval", tmp_path, capsys, monkeypatch)
        runs = {run.benchmark.name: run for run in read_results([tmp_path]).runs}
        right = {name: [question.correct for question in run.questions] for name, run in runs.items()}
        assert right == {"short": verdicts("110"), "long": verdicts("0111")}
        assert {question.group for run in runs.values() for question in run.questions} >= {"needle", "short"}

    @pytest.mark.parametrize("layer_pruner", [None, "holitom-merge"])
    def test_the_model_is_what_stands_before_the_whole_label(
        self,
        layer_pruner: str | None,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Such as "mine-holitom-v2" in "mine-holitom-v2-holitom-m0.1-holitom-merge18"."""
        settings = {"method": "holitom"}
        settings |= {"retention_ratio": 0.1, **({"layer_pruner": layer_pruner} if layer_pruner else {})}
        write_vlmevalkit(tmp_path, settings, {"MVBench": verdicts("01")}, model="mine-holitom-v2", limit=2)
        made_by("tango_vlmeval", tmp_path, capsys, monkeypatch)
        (run,) = read_results([tmp_path]).runs
        assert run.model == "mine-holitom-v2"

    def test_questions_with_subtitles_are_another_set(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = write_vlmevalkit(tmp_path, TANGO, {"Video-MME": verdicts("0111"), "MLVU_MCQ": verdicts("110")})
        stored = json.loads((folder / "tango_args.json").read_text())
        stored["settings"]["data"]["Video-MME_32frame"]["use_subtitle"] = True
        (folder / "tango_args.json").write_text(json.dumps(stored))
        made_by("tango_vlmeval", tmp_path, capsys, monkeypatch)
        runs = {run.benchmark.name: run for run in read_results([tmp_path]).runs}
        assert runs.keys() == {"Video-MME with subtitles", "MLVU"}
        assert runs["Video-MME with subtitles"].benchmark.family == "Video-MME"
        assert {question.group for question in runs["Video-MME with subtitles"].questions} == {"short", "medium"}

    def test_scores_that_are_missing_and_failures_of_the_toolkit(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        errors = {"Video-MME": "RuntimeError:\n  no memory"}
        folder = write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("10")}, errors=errors)
        next(folder.glob("*_score.tsv")).unlink()
        made_by("tango_vlmeval", tmp_path, capsys, monkeypatch)
        results = read_results([tmp_path])
        assert results.runs == ()
        assert set(results.notes) == {
            f"{folder}: Video-MME failed: RuntimeError: no memory",
            f"{folder}: MVBench failed: no scores",
        }

    @pytest.mark.parametrize(
        ("pattern", "content", "message"),
        [
            ("tango_summary.json", b'{"model": "LLaVA', "JSONDecodeError"),
            ("tango_summary.json", b"[1]", "TypeError"),
            ("tango_summary.json", b'{"model": "m"}', "KeyError 'settings'"),
            ("tango_args.json", b"3", "AttributeError"),
            ("*_score.tsv", b"index\tvideo\tscore\n0\tv\t1\n", "KeyError 'prefix'"),
            ("*_score.tsv", b"index\tprefix\tvideo\n0\tp\tv\n", "KeyError 'score'"),
            ("*_score.tsv", b"\xff\xfe", "UnicodeDecodeError"),
            ("*_score.xlsx", b"PK\3\4 no table", "BadZipFile"),
        ],
    )
    def test_files_that_are_not_what_they_should_be(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        pattern: str, content: bytes, message: str,
    ) -> None:  # fmt: skip
        folder = write_vlmevalkit(tmp_path, TANGO, {"MVBench": verdicts("10")})
        path = next(folder.glob(pattern.replace("xlsx", "tsv")))
        path.with_suffix(Path(pattern).suffix).write_bytes(content)
        said = made_by("tango_vlmeval", tmp_path, capsys, monkeypatch)
        assert said.startswith(f"error: cannot make records of {folder}: {message}")
        assert not (folder / "records.jsonl").exists()


class TestLmmsEval:
    def test_every_benchmark(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
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
            "egoschema": [
                {"doc": {"score": 0}, "some_score": {"score": score, "videoID": "v"}} for score in (1.0, 0.0)
            ],
        }
        monkeypatch.setattr(benchmarks, "BENCHMARKS", MINIATURE)
        write_lmms_eval(tmp_path / "ov", TANGO, samples)
        made_by("tango_lmms_eval", tmp_path, capsys, monkeypatch)
        runs = {run.benchmark.name: run for run in read_results([tmp_path]).runs}
        right = {name: sum(question.correct for question in run.questions) for name, run in runs.items()}
        assert right == {"MVBench": 4, "LongVideoBench": 3, "MLVU": 4, "egoschema": 1}
        assert not any(run.partial for run in runs.values())
        assert {question.group for question in runs["MVBench"].questions} == set(list(samples)[:2])
        assert {question.video_id for question in runs["LongVideoBench"].questions} == {"a_b"}
        assert {question.video_id for name in ("MVBench", "MLVU") for question in runs[name].questions} == {None}
        assert (runs["MLVU"].model, runs["egoschema"].num_expected) == ("llava-onevision-qwen2-7b-ov", 2)

    def test_other_sets_are_judged_as_their_benchmark_and_go_by_other_names(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ego = {"task_type": "ego", "answer": "A"}
        samples = {
            "mlvu_test": [{"mlvu_percetion_score": {**ego, "pred_answer": letter}} for letter in "AAB"],
            "videomme_w_subtitle": [
                {"videomme_perception_score": {"score": score, "videoID": "v", "duration": "long"}} for score in (1, 0)
            ],
        }
        write_lmms_eval(tmp_path / "ov", TANGO, samples)
        made_by("tango_lmms_eval", tmp_path, capsys, monkeypatch)
        runs = {run.benchmark.name: run for run in read_results([tmp_path]).runs}
        right = {name: sum(question.correct for question in run.questions) for name, run in runs.items()}
        assert right == {"MLVU test": 2, "Video-MME with subtitles": 1}
        assert {question.group for run in runs.values() for question in run.questions} == {"ego", "long"}

    def test_results_go_with_the_method_that_was_written_next(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = {"egoschema": [{"some_score": {"score": 1.0}}]}
        for minute, method in enumerate(("tango", "holitom", "uniform")):
            times = {"time": f"20260101_120{minute}00", "efficiency_time": f"20260101_120{minute}07"}
            write_lmms_eval(tmp_path, {"method": method}, lines, **times)
        (tmp_path / "20260101_120107_efficiency.json").unlink()
        made_by("tango_lmms_eval", tmp_path, capsys, monkeypatch)
        results = read_results([tmp_path])
        assert [(run.source.name[:15], run.method["method"]) for run in results.runs] == [
            ("20260101_120000", "tango"), ("20260101_120200", "uniform"),
        ]  # fmt: skip
        (note,) = results.notes
        assert note.startswith(f"{tmp_path / '20260101_120100_results.json'} has no records")

    def test_failures_belong_to_their_tasks(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        samples = {"tango_mini": WRONG, "tango_mini_blank": WRONG, "egoschema": WRONG}
        failed = [{"task": "tango_mini_blank", "doc_id": i, "error": "VideoReadError: gone"} for i in range(4)]
        failed.append({"task": "egoschema", "doc_id": 3, "error": "OutOfMemoryError: 1 GB"})
        more = {"sums": {"samples": 60, "failures": 5}, "failed_questions": failed}
        write_lmms_eval(tmp_path, TANGO, samples, more=more)
        made_by("tango_lmms_eval", tmp_path, capsys, monkeypatch)
        found = {run.benchmark.name: run.num_failed for run in read_results([tmp_path]).runs}
        assert found == {"TangoMini": 0, "TangoMini-blank": 4, "egoschema": 1}

    @pytest.mark.parametrize(("tasks", "total", "expected"), [(1, 3, 3), (2, 0, 0), (2, 5, None)])
    def test_a_sum_over_several_tasks_is_a_warning(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        tasks: int, total: int, expected: int | None,
    ) -> None:  # fmt: skip
        samples = dict(list({"tango_mini": WRONG, "egoschema": WRONG}.items())[:tasks])
        write_lmms_eval(tmp_path, TANGO, samples, more={"sums": {"samples": 40, "failures": total}})
        monkeypatch.setattr("sys.argv", ["records", str(tmp_path)])
        from tango_lmms_eval import records

        assert records.main() == 0
        warned = "warning: 5 questions failed and count as wrong (egoschema, TangoMini)\n"
        assert capsys.readouterr().err == ("" if expected is not None else warned)
        assert {run.num_failed for run in read_results([tmp_path]).runs} == {expected}

    @pytest.mark.parametrize(
        ("pattern", "content", "message"),
        [
            ("*_results.json", "{", "Expecting"),
            ("*_results.json", "{}", "KeyError 'config'"),
            ("*_samples_videomme.jsonl", '{"doc_id": 0', "Expecting"),
            ("*_samples_videomme.jsonl", '{"doc_id": 0}', "KeyError 'videomme_perception_score'"),
            (
                "*_samples_videomme.jsonl",
                '\n{"doc_id": 0, "videomme_perception_score": {"score": 1, "videoID": [], "duration": "short"}}',
                "TypeError video_id must be text or a number, got []",
            ),
            ("*_samples_videomme.jsonl", '{"a":' * 100_000, "maximum recursion"),
            ("*_efficiency.json", "[]", "TypeError"),
            ("*_efficiency.json", '{"config": {"method": "t", "pretrained": "p"}, "means": {}}', "method must be an"),
        ],
        ids=lambda value: value[:30],
    )
    def test_files_that_are_not_what_they_should_be(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        pattern: str, content: str, message: str,
    ) -> None:  # fmt: skip
        ignore = shutil.ignore_patterns("*records.jsonl", "*run.json")
        shutil.copytree(RECORDED / "lmms_eval", tmp_path / "logs", ignore=ignore)
        next((tmp_path / "logs").rglob(pattern)).write_text(content)
        said = made_by("tango_lmms_eval", tmp_path, capsys, monkeypatch)
        assert said.startswith("error: ")
        assert message in said
        assert "_results.json" in said
        assert not list(tmp_path.rglob("*records.jsonl"))


class TestWhenScored:
    """lmms-eval's tracker, without its runs: those are in `test_lmms_eval`."""

    EFFICIENCY = {  # noqa: RUF012
        "config": {"pretrained": "org/m", "method": {"method": "none"}, "num_frames": 8},
        "means": {}, "environment": {"date": "2026"},
    }  # fmt: skip

    def saved(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
        from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

        times: list[str] = []
        monkeypatch.setattr(
            EvaluationTracker, "save_results_aggregated", lambda _self, _results, _samples, time: times.append(time)
        )
        return EvaluationTracker, times

    def test_tokens_and_failures_of_each_question(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tango_lmms_eval.records import write_when_scored

        tracker, times = self.saved(monkeypatch)
        original = tracker.save_results_aggregated
        write_when_scored(tmp_path, self.EFFICIENCY, {})  # of a run that failed before it was scored
        answers = {("lvb", i): {"tokens_before": 100, "tokens_after": 10.5 + i} for i in range(2)}
        answers["lvb", 2] = {"error": "VideoReadError: gone"}
        write_when_scored(tmp_path, self.EFFICIENCY, answers)
        samples = [{"doc_id": i, "a": {"score": 1.0}, "filtered_resps": ["A"], "target": 3} for i in range(3)]
        results = {"config": {"limit": 3.0}, "n-samples": {"lvb": {"original": 9}}}
        tracker.save_results_aggregated(SimpleNamespace(), results, {"lvb": samples}, datetime_str="20260101_10:00")
        assert times == ["20260101_10:00"]
        assert tracker.save_results_aggregated is original
        path = tmp_path / "20260101_10-00_records.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["correct"] for line in lines] == [True, True, False]  # a draw for a failed one does not count
        assert [line["tokens_after"] for line in lines] == [10.5, 11.5, None]
        assert (lines[2]["error"], lines[0]["text"], lines[0]["answer"]) == ("VideoReadError: gone", "A", "3")
        assert read_run(path)["limit"] == 3
        (run,) = read_results([path]).runs
        assert (run.num_failed, run.num_expected, run.limited, run.tokens_after) == (1, 9, True, 11)

    def test_a_task_whose_scores_are_not_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from loguru import logger
        from tango_lmms_eval.records import write_when_scored

        tracker, _ = self.saved(monkeypatch)
        write_when_scored(tmp_path, self.EFFICIENCY, {("lvb", 0): {}})
        results = {"config": {}, "n-samples": {"lvb": {"original": 1}}}
        told: list[str] = []
        sink = logger.add(told.append)
        tracker.save_results_aggregated(SimpleNamespace(), results, {"lvb": [{"doc_id": 0, "wer": 0.5}]}, "now")
        logger.remove(sink)
        assert "no records: cannot make" in told[0]
        assert "KeyError 'score'" in told[0]
        assert list(tmp_path.iterdir()) == []

    def test_without_samples_there_are_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tango_lmms_eval.records import write_when_scored

        tracker, times = self.saved(monkeypatch)
        write_when_scored(tmp_path, self.EFFICIENCY, {})
        tracker.save_results_aggregated(SimpleNamespace(), {}, None, "now")
        assert (times, list(tmp_path.iterdir())) == (["now"], [])

    def test_an_answer_that_nobody_gave(self, tmp_path: Path) -> None:
        from tango_lmms_eval.records import write

        samples = {"lvb": [{"doc_id": 0, "a": {"score": 1.0}}]}
        results = {"config": {}, "n-samples": {"lvb": {"original": 1}}}
        with pytest.raises(TangoError, match=r"now_records\.jsonl: KeyError \('lvb', 0\)"):
            write(tmp_path, "now", results, samples, self.EFFICIENCY, {})
