"""The parts of Tango's VLMEvalKit adapter, held against the toolkit's own functions in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tango.evaluation import Answer

KIT = Path(__file__).parents[2] / "VLMEvalKit"
pytestmark = pytest.mark.filterwarnings("ignore")  # the toolkit's imports warn of much


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(KIT))


ODD_OPTIONS = [
    ["e", "z"],
    ["failed", "empty"],
    ["Z", "a"],
    ["[", "]"],
    ["no", "yes"],
]


class TestPredictions:
    @pytest.mark.parametrize("options", ODD_OPTIONS, ids=" ".join)
    @pytest.mark.parametrize("right", [0, 1])
    def test_no_answer_is_wrong_in_every_benchmark(self, options: list[str], right: int) -> None:
        from tango_vlmeval.model import EMPTY, FAILED
        from vlmeval.dataset.utils import longvideobench, mlvu, mvbench, videomme

        for prediction in (EMPTY, FAILED):
            item = {"question": "What?", "prediction": prediction, "answer": "AB"[right]}
            item |= dict(zip("AB", options, strict=True))
            target = f"({'AB'[right]}) {options[right]}"
            assert not mvbench.check_ans_with_model(prediction, target, None, dict(item))
            assert not mlvu.check_ans_with_model(prediction, target, None, dict(item))
            for benchmark in (videomme, longvideobench):
                letter = benchmark.extract_characters_regex(prediction)
                assert letter == ""
                assert benchmark.extract_option(None, dict(item), "Video-MME") == "Z"

    def test_an_empty_prediction_would_be_right(self) -> None:
        """What the marks are for."""
        from vlmeval.dataset.utils import mvbench

        item = {"question": "What?", "prediction": "", "answer": "A", "A": "red", "B": "blue"}
        assert mvbench.check_ans_with_model("", "(A) red", None, item)

    @pytest.mark.parametrize("text", ["", " ", ".", "(", "\n)"])
    def test_text_without_a_word_is_marked(self, text: str) -> None:
        from tango_vlmeval.model import EMPTY, prediction

        assert prediction(Answer(text=text)) == EMPTY

    @pytest.mark.parametrize("text", ["A", "(B) red", "none of them", "nothing", "A = 3", "5 apples"])
    def test_other_text_stays(self, text: str) -> None:
        from tango_vlmeval.model import prediction

        assert prediction(Answer(text=f" {text}\n")) == text

    def test_an_error_is_marked_whatever_the_text(self) -> None:
        from tango_vlmeval.model import FAILED, prediction

        assert prediction(Answer(text="", error="VideoReadError: no")) == FAILED

    def test_predictions_come_back_from_a_table(self, tmp_path: Path) -> None:
        import pandas as pd
        from tango_vlmeval.model import EMPTY, FAILED, prediction
        from vlmeval.smp import dump, load

        texts = ["None", "N/A", "n/a", "nan", "NaN", "-nan", "#N/A", "null", "NULL", "<NA>", "NA", "=1+1", "{=A1}", "B"]
        made = [prediction(Answer(text=text)) for text in texts] + [EMPTY, FAILED]
        dump(pd.DataFrame({"prediction": made}), str(tmp_path / "predictions.xlsx"))
        assert load(str(tmp_path / "predictions.xlsx"))["prediction"].tolist() == made
        assert all(text in one for text, one in zip(texts, made, strict=False))


MESSAGE = [
    {"type": "text", "value": "Watch. ", "role": "system"},
    {"type": "video", "value": "a.mp4"},
    {"type": "text", "value": "What?"},
    {"type": "text", "value": "\nBest option:(", "role": "assistant"},
]


class TestQuestions:
    def question(self, message: list[dict[str, Any]], *, shows_frames: bool = True, **options: Any) -> Any:
        from tango_vlmeval.model import Tango

        from tango.evaluation import MethodConfig

        model = Tango(method=MethodConfig(), journal=Path("unused"), rank=0, max_new_tokens=7, **options)
        model.nframe, model.shows_frames = 8, shows_frames
        question = model.question(message)
        assert (question.num_frames, question.max_new_tokens, question.prefill) == (8, 7, "")
        (turn,) = question.messages
        assert turn["role"] == "user"
        return turn["content"]

    def test_all_text_is_one_turn_in_order(self) -> None:
        assert self.question(MESSAGE) == [
            {"type": "text", "text": "Watch. "},
            {"type": "video", "video": "a.mp4"},
            {"type": "text", "text": "What?\nBest option:("},
        ]

    def test_video_first(self) -> None:
        assert self.question(MESSAGE, video_first=True) == [
            {"type": "video", "video": "a.mp4"},
            {"type": "text", "text": "Watch. What?\nBest option:("},
        ]

    def test_images_of_a_video_data_set_are_the_frames_of_one_video(self) -> None:
        images = [{"type": "image", "value": f"{i}.jpg"} for i in range(2)]
        message = [MESSAGE[0], *images, MESSAGE[2]]
        assert self.question(message) == [
            {"type": "text", "text": "Watch. "},
            {"type": "video", "video": ["0.jpg", "1.jpg"]},
            {"type": "text", "text": "What?"},
        ]
        elsewhere = self.question(message, shows_frames=False)
        assert [part["type"] for part in elsewhere] == ["text", "image", "image", "text"]

    def test_an_empty_text_is_no_part(self) -> None:
        message = [{"type": "text", "value": ""}, {"type": "video", "value": "a.mp4"}, {"type": "text", "value": "Q"}]
        assert [part["type"] for part in self.question(message)] == ["video", "text"]


class FakeAnswerer:
    """Answers with the text of the question, and remembers what was asked when."""

    def __init__(self, ahead: int):
        self.ahead, self.asked = ahead, []

    def answers(self, questions: Any, **_options: Any) -> Any:
        waiting: list[Any] = []
        for question in questions:
            self.asked.append(question)
            waiting.append(question)
            if len(waiting) >= self.ahead:
                yield Answer(text=f"re {waiting.pop(0)}")
        for question in waiting:
            yield Answer(text=f"re {question}")

    def answer(self, question: Any) -> Answer:
        return next(self.answers([question]))


class FakeDataset:
    def __init__(self, broken: dict[int, Exception] | None = None):
        self.built: list[int] = []
        self.broken = broken or {}

    def build_prompt(self, position: int, video_llm: bool) -> list[dict[str, Any]]:
        assert video_llm
        self.built.append(position)
        if position in self.broken:
            raise self.broken[position]
        return [{"type": "text", "value": f"q{position}"}]


class TestReadAhead:
    def start(self, dataset: FakeDataset, positions: list[int], ahead: int = 3) -> Any:
        from tango_vlmeval.inference import ReadAhead
        from tango_vlmeval.model import Tango

        model = Tango.__new__(Tango)
        model.__dict__["answerer"] = FakeAnswerer(ahead)
        model.question = lambda message: message[0]["value"]
        model.ready = None
        return model, ReadAhead(model, dataset, positions)

    def test_every_prompt_is_built_and_asked_once_and_ahead(self) -> None:
        dataset = FakeDataset()
        model, ahead = self.start(dataset, [0, 2, 4, 6, 8])
        for position in (0, 2, 4, 6, 8):
            message = ahead.build_prompt(position, video_llm=True)
            assert message[0]["value"] == f"q{position}"
            if position == 0:
                assert dataset.built == [0, 2, 4]
            assert model.generate(message, "MVBench") == f"re q{position}"
        assert dataset.built == [0, 2, 4, 6, 8]
        assert model.answerer.asked == ["q0", "q2", "q4", "q6", "q8"]
        assert list(ahead.answers) == [0, 2, 4, 6, 8]

    def test_it_starts_where_the_toolkit_does_and_follows_its_jumps(self) -> None:
        model, ahead = self.start(FakeDataset(), [0, 1, 2, 3, 4, 5])
        for position in (2, 3, 5):
            assert model.generate(ahead.build_prompt(position)) == f"re q{position}"
        assert list(ahead.answers) == [2, 3, 5]

    def test_another_message_is_answered_by_itself(self) -> None:
        model, ahead = self.start(FakeDataset(), [0, 1])
        ahead.build_prompt(0)
        assert model.generate([{"type": "text", "value": "other"}]) == "re other"

    @pytest.mark.parametrize("broken", [{0}, {1, 2}, {4}, {0, 1, 2, 3, 4}])
    def test_prompts_that_cannot_be_built_fail_alone(self, broken: set[int]) -> None:
        errors: dict[int, Exception] = {position: OSError("no video\nffmpeg says ...") for position in broken}
        model, ahead = self.start(FakeDataset(errors), [0, 1, 2, 3, 4])
        for position in range(5):
            expected = "[Z] failed" if position in broken else f"re q{position}"
            assert model.generate(ahead.build_prompt(position)) == expected
        failed = {position: answer.error for position, answer in ahead.answers.items() if answer.error}
        assert failed == dict.fromkeys(sorted(broken), "OSError: no video")

    def test_a_missing_package_is_nobodys_wrong_answer(self) -> None:
        _, ahead = self.start(FakeDataset({0: ImportError("moviepy")}), [0])
        with pytest.raises(ImportError, match="moviepy"):
            ahead.build_prompt(0)


class TestPatches:
    def test_a_finished_data_set_is_left_alone_by_every_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import pandas as pd
        import vlmeval.inference_video as module
        from tango_vlmeval import patches

        for name in ("infer_data", "tqdm"):
            monkeypatch.setattr(module, name, getattr(module, name))  # puts back what is patched
        asked = []
        runner = SimpleNamespace(
            infer_data_job_video=lambda _model, **options: asked.append(options["result_file"]),
            is_prediction_complete=lambda path, indices, retry: (path, indices, retry) == ("done.xlsx", [0, 1], True),
        )
        patches._infer(runner)
        dataset = SimpleNamespace(data=pd.DataFrame({"index": [0, 1]}))
        for path in ("done.xlsx", "begun.xlsx"):
            runner.infer_data_job_video("model", dataset=dataset, result_file=path)
        assert asked == ["begun.xlsx"]

    def test_tables_are_whole_or_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import pandas as pd
        import vlmeval.dataset.mvbench as user
        from tango_vlmeval import patches
        from vlmeval import smp

        for name, module in list(sys.modules.items()):
            if name.startswith(("vlmeval.", "tango_vlmeval.")) and vars(module).get("dump") is smp.dump:
                monkeypatch.setattr(module, "dump", smp.dump)
        patches._write_whole_files()
        target = tmp_path / "scores.xlsx"
        user.dump(pd.DataFrame({"score": [1]}), str(target))
        assert [path.name for path in tmp_path.iterdir()] == ["scores.xlsx"]

        def half_written(_self: Any, path: str, **_options: Any) -> None:
            Path(path).write_bytes(b"PK")
            raise KeyboardInterrupt

        monkeypatch.setattr(pd.DataFrame, "to_excel", half_written)
        before = target.read_bytes()
        with pytest.raises(KeyboardInterrupt):
            user.dump(pd.DataFrame({"score": [2]}), str(target))
        assert target.read_bytes() == before

    @pytest.mark.parametrize(("world_size", "expected"), [("1", ValueError), ("2", SystemExit)])
    def test_processes_stop_together(
        self, world_size: str, expected: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import vlmeval.inference_video as module
        from tango_vlmeval import inference, patches
        from tango_vlmeval.model import Tango

        def fail(*_args: Any, **_options: Any) -> None:
            raise ValueError("of one process")

        for name in ("infer_data", "tqdm"):
            monkeypatch.setattr(module, name, getattr(module, name))
        monkeypatch.setattr(inference, "infer", fail)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        patches._infer(SimpleNamespace(infer_data_job_video=None))
        with pytest.raises(expected):
            module.infer_data(Tango.__new__(Tango))


class TestData:
    def test_only_prepared_tables_are_trusted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import vlmeval.dataset
        from tango_vlmeval import data

        from tests.toolkits.datasets import write_hub_cache

        monkeypatch.setenv("HF_HOME", str(write_hub_cache(tmp_path)))
        monkeypatch.setenv("VLMEVALKIT_USE_MODELSCOPE", "0")
        classes = {name: getattr(vlmeval.dataset, source.class_name) for name, source in data.SOURCES.items()}
        for name, cls in classes.items():
            monkeypatch.setattr(cls, "MD5", "the toolkit's")
            (folder,) = tmp_path.glob(f"hub/datasets--{data.SOURCES[name].repository.replace('/', '--')}/snapshots/*")
            (folder / f"{name}.tsv").write_text(f"{name}\n")
            if name == "MVBench":
                (folder / data.PREPARED).write_text(f'{{"{name}.tsv": "4f78e8b3d2f0e3f2ae2ebb8b0eb7ad38"}}')
            if name == "MLVU_MCQ":
                data.write_json(folder / data.PREPARED, {f"{name}.tsv": data._md5(folder / f"{name}.tsv")})
        data.trust([], everything=True)
        assert {cls.MD5 for cls in classes.values()} == {"the toolkit's"}
        data.trust(data.SOURCES)
        assert [name for name, cls in classes.items() if cls.MD5 != "the toolkit's"] == ["MLVU_MCQ"]
        data.trust(data.SOURCES, everything=True)
        assert all(len(cls.MD5) == 32 for cls in classes.values())


class TestSummary:
    """What is wrong with a run decides its exit code."""

    def run(
        self, folder: Path, *, scores: list[int] | None, failures: int = 0, without: tuple[str, ...] = (), **status: Any
    ) -> list[str]:
        import json

        import pandas as pd
        from tango_vlmeval.settings import ModelSettings, Run
        from tango_vlmeval.summary import SUMMARY, summarise

        from tango.evaluation import MethodConfig

        entry = {"class": "MVBench", "dataset": "MVBench", "nframe": 8}
        model = ModelSettings(method=MethodConfig(), arguments={"pretrained": "p"})
        config = {"model": {"M": {}}, "data": {"MVBench_8frame": entry}}
        run = Run(
            models={"M": model}, config=config, work_dir=folder, limit=None, trust_local_data=False, command=["run.py"]
        )
        (folder / "M").mkdir()
        (folder / "M/status.json").write_text(json.dumps({"datasets": {"MVBench_8frame": status}}))
        if scores is not None:
            named = {"index": [0, 1, 2], "prefix": "p/", "video": ["u", "v", "v"], "prediction": ["A", "", "B"]}
            rows = pd.DataFrame({**named, "task_type": ["a", "a", "b"], "score": scores})
            rows.drop(columns=list(without)).to_excel(folder / "M/M_MVBench_8frame_score.xlsx", index=False)
            record = {
                "failures": [{"index": i, "error": "VideoReadError: no"} for i in range(failures)],
                "efficiency": {"sums": {"samples": 3}, "means": {"visual_tokens_before": 100}},
                "tokens": {"1": [100, 10.5]},
            }
            (folder / "M/M_MVBench_8frame_tango.json").write_text(json.dumps(record))
        problems = summarise(run)
        self.found = json.loads((folder / "M" / SUMMARY).read_text())["datasets"]["MVBench_8frame"]
        return problems

    def test_scores(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, scores=[1, 0, 1], failures=1, status="done") == []
        assert self.found["accuracy_percent"] == pytest.approx(200 / 3)
        assert self.found["groups_percent"] == {"a": 50, "b": 100}
        assert self.found["mean_of_groups_percent"] == 75
        assert (self.found["num_correct"], self.found["num_questions"], self.found["num_failures"]) == (2, 3, 1)

    def test_the_records_have_every_question(self, tmp_path: Path) -> None:
        import json

        from tango.report.readers import read_results

        self.run(tmp_path, scores=[1, 0, 1], failures=1, status="done")
        lines = [json.loads(line) for line in (tmp_path / "M/records.jsonl").read_text().splitlines()]
        assert [line["failed"] for line in lines] == [True, False, False]
        assert [(line["tokens_before"], line["tokens_after"]) for line in lines] == [
            (None, None), (100, 10.5), (None, None),
        ]  # fmt: skip
        assert [line["text"] for line in lines] == ["A", None, "B"]
        (run,) = read_results([tmp_path]).runs
        assert [(q.question_id, q.video_id, q.group) for q in run.questions] == [
            ("0", "p//u", "a"), ("1", "p//v", "a"), ("2", "p//v", "b"),
        ]  # fmt: skip
        assert [question.correct for question in run.questions] == [False, False, True]  # the first failed
        assert (run.benchmark.name, run.num_failed, run.tokens_before, run.tokens_after) == ("MVBench", 1, 100, 10.5)
        assert "tokens" not in self.found

    def test_a_table_without_clips_has_scores_and_no_records(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(tmp_path, scores=[1, 0, 1], without=("video",), status="done") == []
        assert self.found["num_correct"] == 2
        assert "run.py: warning: M: cannot make records of" in capsys.readouterr().err
        assert not (tmp_path / "M/records.jsonl").exists()

    def test_what_the_judge_could_not_score_is_not_right(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, scores=[1, -1, 1]) == []
        assert self.found["accuracy_percent"] == pytest.approx(200 / 3)

    def test_an_error_of_the_toolkit(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, scores=None, error_message="no such file") == ["M, MVBench_8frame: no such file"]

    def test_no_scores(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, scores=None) == ["M, MVBench_8frame: no scores"]

    def test_nothing_could_be_read(self, tmp_path: Path) -> None:
        (problem,) = self.run(tmp_path, scores=[0, 0, 0], failures=3)
        assert problem == ("M, MVBench_8frame: 3 of 3 questions failed, more than half; the first: VideoReadError: no")

    def test_the_table_has_all_runs(self, tmp_path: Path) -> None:
        from tango_vlmeval.summary import table

        self.run(tmp_path, scores=[1, 0, 1], failures=1)
        assert table([tmp_path]).splitlines()[2:] == ["| M | 66.7 | 1 |"]
