"""The leaderboard's files: the schema, what fields must be to each other, and entries made of runs and of the paper."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tango.errors import TangoError
from tango.report import leaderboard
from tango.report.benchmarks import BENCHMARKS
from tango.report.leaderboard import check_entry, check_files, group_of, read_folder
from tango.report.leaderboard_form import mistakes
from tango.report.leaderboard_paper import paper_entries
from tango.report.leaderboard_runs import entry_of_run, file_name
from tango.report.readers import read_results
from tests.report.folders import write_lines

ROOT = Path(__file__).parents[2]
ENTRY: dict[str, Any] = {
    "schema": 1,
    "kind": "measured here",
    "source": {"who": "A. Tester", "link": "https://example.org/records"},
    "model": "LLaVA-OneVision-7B",
    "num_frames": 32,
    "benchmark": "Video-MME",
    "set": "without subtitles",
    "part": None,
    "name": "tango",
    "method": {"method": "tango", "options": {"retention_ratio": 0.1, "alpha": 1.5}},
    "control": False,
    "nominal_ratio": 0.1,
    "kept_share": 0.108,
    "accuracy": 58.5185,
    "interval": [56.1, 60.9],
    "num_questions": 2700,
    "num_asked": 2700,
    "num_correct": 1580,
    "num_failed": 3,
    "num_clips": 900,
    "versions": {"tango": "0.1.0", "torch": "2.15.0"},
    "hardware": "1 x NVIDIA H200",
    "date": "2026-11-21",
    "notes": None,
}
REPORT = {**ENTRY, "kind": "reported by the authors of Tango"} | dict.fromkeys(
    ("interval", "num_asked", "num_correct", "num_failed", "num_clips", "versions", "hardware", "date", "kept_share")
)


def write(folder: Path, entry: object, name: str = "x.json") -> Path:
    path = folder / name
    path.write_text(entry if isinstance(entry, str) else json.dumps(entry))
    return path


class TestGoodFiles:
    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"kind": "measured elsewhere"},
            {"source": {"who": "A. Tester", "link": None}},
            {"num_frames": None, "kept_share": None, "num_failed": None, "num_clips": None},
            {"num_asked": 33, "num_correct": 30, "accuracy": 90.9, "interval": None, "num_clips": 1, "part": "a clip"},
            {"num_correct": 0, "accuracy": 0.0, "interval": [0.0, 0.4]},
            {"accuracy": 58.5, "interval": [58.5, 58.5]},  # rounded to one decimal place
            {"benchmark": "MLVU", "set": "test", "num_questions": 502, "num_asked": 502, "num_correct": 251,
             "num_clips": 502, "accuracy": 47.1, "interval": [40, 54]},  # the mean over tasks is not the share of all
            {"benchmark": "MyBench", "set": "hard", "num_questions": None},
            {"method": {"method": "none", "options": {}}, "nominal_ratio": 1, "kept_share": 1},
            {"method": {"method": "tango", "options": {}, "mean_retention_ratio": 0.1}},
            {"method": {"method": "random", "options": {}}, "control": True},
        ],
    )  # fmt: skip
    def test_measured(self, change):
        assert list(check_entry({**ENTRY, **change})) == []

    def test_reported(self):
        assert list(check_entry({**REPORT, "set": None, "method": {"method": "tango"}})) == []

    def test_notes_may_be_left_out(self):
        assert list(check_entry({name: value for name, value in ENTRY.items() if name != "notes"})) == []


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "an accuracy in thousandths": ({"accuracy": 840}, "accuracy: got 840, expected a number from 0 to 100, in percent"),
    "a share in percent": ({"kept_share": 10.8}, "kept_share: got 10.8, expected the share"),
    "a ratio of nothing": ({"nominal_ratio": 0}, "nominal_ratio: got 0, expected"),
    "true for a number": ({"num_asked": True}, "num_asked: got True, expected questions that were asked"),
    "half a question": ({"num_correct": 0.5}, "num_correct: got 0.5, expected right answers"),
    "a number for a text": ({"model": 7}, "model: got 7, expected what the model is called"),
    "three ends": ({"interval": [1, 2, 3]}, "interval: got [1, 2, 3], expected"),
    "an end in words": ({"interval": ["low", 60.0]}, "interval[0]: got 'low', expected a number"),
    "a name of the past": ({"schema": 0}, "schema: got 0, expected the version of this form"),
    "another kind": ({"kind": "guessed"}, "kind: got 'guessed', expected"),
    "nobody's report": ({"kind": "reported by the authors of "}, "kind: got"),
    "an address that runs": ({"source": {"who": "x", "link": "javascript:alert(1)"}}, "source.link: got 'javascript:"),
    "an address with a line end": ({"source": {"who": "x", "link": "https://a.b\n"}}, "source.link: got 'https://a.b"),
    "a version that is a number": ({"versions": {"torch": 2.15}}, "versions.torch: got 2.15, expected a version"),
    "a day that is none": ({"date": "2026-02-30"}, "date: got '2026-02-30', expected a day that there is"),
    "a day with its time": ({"date": "2026-11-21T18:28:38"}, "date: got '2026-11-21T18:28:38', expected the day"),
    "a field too many": ({"acuracy": 58.5}, "acuracy: got a field of this name, expected one of"),
    "a field with a line end": ({"a\nb": 1}, "'a\\nb': got a field of this name"),
    "an interval turned round": ({"interval": [60.9, 56.1]}, "interval: got 60.9 to 56.1, expected two numbers around"),
    "a method without a name": ({"method": {"options": {}}}, "method.method: got nothing, expected the method's name"),
    "measured without counts": ({"num_correct": None}, "num_correct: got None, expected of what was measured"),
    "measured nowhere": ({"hardware": None}, "hardware: got None, expected of what was measured"),
    "measured with nothing": ({"versions": {}}, "versions: got {}, expected of what was measured"),
    "measured of some set": ({"set": None}, "set: got None, expected of what was measured"),
    "measured without interval": ({"interval": None}, "interval: got None, expected two numbers"),
    "measured without options": ({"method": {"method": "tango"}}, "method.options: got nothing, expected all options"),
    "a set by another name": ({"set": "no subtitles"}, "set: got 'no subtitles', expected one of 'without subtitles'"),
    "another benchmark's set": ({"benchmark": "MVBench", "num_questions": None}, "expected one of 'all'"),
    "a set in the name": ({"benchmark": "MLVU test"}, "benchmark: got 'MLVU test', expected 'MLVU'"),
    "a toolkit's name": ({"benchmark": "videomme"}, "benchmark: got 'videomme', expected 'Video-MME'"),
    "another whole": ({"num_questions": 2701, "part": "most"}, "num_questions: got 2701, expected 2700 of Video-MME"),
    "more clips than questions": ({"num_clips": 2701}, "num_clips: got 2701, expected at most num_asked, 2700"),
    "a part without a word": ({"num_asked": 2699}, "part: got None, expected which 2699 of the 2700 questions"),
    "a part that is the whole": ({"part": "all but none"}, "part: got 'all but none', expected null"),
    "asked twice": ({"num_asked": 2701}, "num_asked: got 2701, expected at most num_questions, 2700"),
    "right without an answer": ({"num_failed": 1121}, "num_correct: got 1580, expected at most 1579"),
    "another accuracy": ({"accuracy": 58.6}, "accuracy: got 58.6, expected 58.5185, 1580 of 2700 right"),
    "an interval elsewhere": ({"interval": [60.0, 61.0]}, "interval: got 60.0 to 61.0, expected two numbers around"),
    "another ratio": ({"nominal_ratio": 0.2}, "nominal_ratio: got 0.2, expected 0.1, as its method says"),
    "none that pruned": ({"method": {"method": "none", "options": {}}, "nominal_ratio": 1}, "kept_share: got 0.108"),
    "a hidden control": ({"method": {"method": "random", "options": {}}}, "control: got False, expected True"),
    "a hidden grey video": (
        {"benchmark": "TangoMini-blank", "set": "all", "num_questions": 1903, "num_asked": 1903, "num_correct": 400,
         "num_clips": 200, "accuracy": 21.0, "interval": [19, 23]},
        "control: got False, expected True for tango on TangoMini-blank",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_mistake(tmp_path, change, said):
    found = check_files([write(tmp_path, {**ENTRY, **change})])
    assert found.entries == []
    assert len(found.mistakes) == 1, found.mistakes
    assert found.mistakes[0].startswith(f"{tmp_path / 'x.json'}: ")
    assert said in found.mistakes[0]
    assert ", expected " in found.mistakes[0]
    assert "; " in found.mistakes[0]  # the way out


@pytest.mark.parametrize("name", [name for name in ENTRY if name != "notes"])
def test_every_field_is_needed(name):
    (said,) = check_entry({other: value for other, value in ENTRY.items() if other != name})
    assert said.startswith(f"{name}: got nothing, expected ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read: Expecting property name"),
        ("[]", "the file: got [], expected an object"),
        (json.dumps(ENTRY).replace("58.5185", "NaN"), "NaN is no number in JSON"),
        (json.dumps(ENTRY)[:-1] + ', "accuracy": 99.9}', "'accuracy' stands twice in one object"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({**ENTRY, "notes": "x" * 100_000}), "larger than 100000 bytes"),
        (json.dumps({**ENTRY, "notes": "\ud800"}), "surrogates not allowed"),
    ],
    ids=["cut off", "a list", "no number", "a name twice", "nested", "large", "half a pair"],
)
def test_a_file_that_is_no_such_object(tmp_path, content, said):
    (found,) = check_files([write(tmp_path, content)]).mistakes
    assert said in found
    assert "\n" not in found


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    found = check_files([tmp_path / "none.json", tmp_path / "x.json"]).mistakes
    assert ["cannot be read" in one for one in found] == [True, True]


def test_all_mistakes_of_a_file_are_told(tmp_path):
    wrong = {**ENTRY, "accuracy": "high", "num_clips": 0, "date": None}
    names = [one.split(": ")[1] for one in check_files([write(tmp_path, wrong)]).mistakes]
    assert names == [
        "accuracy",
        "num_clips",
    ]  # what a date must be to the kind is asked once all fields have their type
    later = {**ENTRY, "accuracy": 99.0, "num_clips": 5000, "date": None}
    names = [one.split(": ")[1] for one in check_files([write(tmp_path, later)]).mistakes]
    assert names == ["date", "num_clips", "accuracy", "interval"]


def test_one_run_in_two_files(tmp_path):
    first = write(tmp_path, ENTRY, "a.json")
    same = {
        **ENTRY,
        "method": {"options": {"alpha": 1.5, "retention_ratio": 0.10}, "method": "tango"},
        "notes": "again",
    }
    (found,) = check_files([first, write(tmp_path, same, "b.json")]).mistakes
    assert f"b.json: got the run that {first} has, expected each run once" in found
    other = write(tmp_path, {**ENTRY, "method": {**ENTRY["method"], "saliency": "attn"}}, "b.json")
    assert check_files([first, other]).mistakes == []


@pytest.mark.parametrize("name", ["Run.json", "a b.json", ".x.json", "x.JSON"])
def test_names_that_some_systems_do_not_tell_apart(tmp_path, name):
    (found,) = check_files([write(tmp_path, ENTRY, name)]).mistakes
    assert "got this name, expected lower-case letters" in found


def test_a_folder_is_read_whole_or_not_at_all(tmp_path):
    with pytest.raises(TangoError, match=r"no results in .*`tango leaderboard add` makes"):
        read_folder(tmp_path)
    write(tmp_path, ENTRY, "a.json")
    assert read_folder(tmp_path) == [ENTRY]
    write(tmp_path, {**ENTRY, "accuracy": 840, "model": 7}, "b.json")
    with pytest.raises(TangoError, match=r"b\.json: model: .*\(and 1 more\); `tango leaderboard check"):
        read_folder(tmp_path)


class TestGroups:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"set": "dev"}, {"set": "test"}),
            ({"set": "without subtitles"}, {"set": "with subtitles"}),
            ({"set": None}, {"set": "without subtitles"}),
            ({"part": None}, {"part": "the first 10 clips"}),
            ({"part": "the first 10 clips"}, {"part": "the first 20 clips"}),
            ({"num_frames": 32}, {"num_frames": 64}),
            ({"model": "LLaVA-OneVision-7B"}, {"model": "LLaVA-Video-7B"}),
        ],
    )
    def test_apart(self, one, other):
        assert group_of({**ENTRY, **one}) != group_of({**ENTRY, **other})

    def test_together(self):
        other = {"kind": "measured elsewhere", "nominal_ratio": 0.2, "method": {"method": "fastv"}, "hardware": "a GPU"}
        assert group_of(ENTRY) == group_of({**ENTRY, **other})


class TestSchema:
    def test_says_of_every_field_what_is_expected(self):
        fields = leaderboard.schema()["properties"]
        assert all(about["description"] for about in fields.values())
        assert set(leaderboard.schema()["required"]) == set(fields) - {"notes"}

    def test_is_the_table_in_the_document(self):
        text = (ROOT / "docs" / "leaderboard.md").read_text(encoding="utf-8")
        named = [name for line in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", line)]
        assert named == list(leaderboard.schema()["properties"])

    def test_keywords_that_are_not_known_are_refused(self):
        with pytest.raises(ValueError, match="not known here: multipleOf"):
            list(mistakes(3, {"multipleOf": 2}))

    def test_the_one_of_a_library_agrees(self):
        """Where jsonschema is installed, it finds mistakes in the same files; its `$` is Python's, not the very end."""
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.Draft202012Validator.check_schema(leaderboard.schema())
        validator = jsonschema.Draft202012Validator(leaderboard.schema())
        broken = [change for name, (change, _) in BROKEN.items() if name != "an address with a line end"]
        for change in ({}, *broken):
            entry = {**ENTRY, **change}
            assert validator.is_valid(entry) == (not list(mistakes(entry, leaderboard.schema()))), change
        for name in ENTRY:
            entry = {other: value for other, value in ENTRY.items() if other != name}
            assert validator.is_valid(entry) == (name == "notes")

    @pytest.mark.parametrize(
        ("value", "schema", "fits"),
        [
            (1.0, {"type": "number"}, True),
            (True, {"type": ["integer", "null"]}, False),
            (None, {"type": ["integer", "null"], "minimum": 1}, True),
            (True, {"const": 1}, False),
            ("ab", {"pattern": "^a$"}, False),
            ("a\n", {"pattern": "^a$"}, False),
            ("xay", {"pattern": "a"}, True),
            (5, {"exclusiveMinimum": 5}, False),
            ("", {"minLength": 1}, False),
            ([1, "x"], {"items": {"type": "integer"}}, False),
            ({"a": 1}, {"additionalProperties": {"type": "string"}}, False),
            ({"a": 1}, {}, True),
        ],
    )
    def test_keywords(self, value, schema, fits):
        assert (not list(mistakes(value, schema))) == fits


ENVIRONMENT = {
    "versions": {"tango": "0.1.0", "torch": "2.15.0"},
    "gpus": ["NVIDIA H200", "NVIDIA H200"],
    "cpu": "AMD EPYC",
    "num_cpus": 2,
}
LINES = [
    {"benchmark": "MyBench", "question_id": i, "video_id": f"clip{i // 2}", "correct": i != 3, "failed": i == 5,
     "tokens_before": 100, "tokens_after": 10 + i}
    for i in range(8)
]  # fmt: skip


def named(method: Any) -> str:
    return str(method["method"])


class TestEntryOfRun:
    def make(self, path: Path, lines: Any = LINES, settings: Any = None, **run: Any) -> dict[str, Any]:
        about = {"date": "2026-11-21T18:28:38+00:00", "environment": ENVIRONMENT, "num_frames": 16, **run}
        settings = settings or {"method": "tango", "retention_ratio": 0.1}
        write_lines(path / "records.jsonl", settings, lines, **about)
        (found,) = read_results([path]).runs
        return entry_of_run(found, named, who="A. Tester")

    def test_has_what_the_records_say(self, tmp_path):
        entry = self.make(tmp_path)
        assert list(check_entry(entry)) == []
        method = entry.pop("method")
        assert (method["method"], method["options"]["retention_ratio"], method["options"]["alpha"]) == (
            "tango",
            0.1,
            1.5,
        )
        low, high = entry.pop("interval")
        assert 0 <= low < 75 < high <= 100
        assert entry == {
            "schema": 1, "kind": "measured here", "source": {"who": "A. Tester", "link": None},
            "model": "LLaVA-OneVision-7B", "num_frames": 16, "benchmark": "MyBench", "set": "all", "part": None,
            "name": "tango", "control": False, "nominal_ratio": 0.1, "kept_share": 0.135, "accuracy": 75.0,
            "num_questions": None, "num_asked": 8, "num_correct": 6, "num_failed": 1, "num_clips": 4,
            "versions": ENVIRONMENT["versions"], "hardware": "2 x NVIDIA H200", "date": "2026-11-21", "notes": None,
        }  # fmt: skip

    def test_what_was_not_counted_is_not_made_up(self, tmp_path):
        lines = [{**line, "tokens_after": None, "video_id": None} for line in LINES]
        entry = self.make(tmp_path, lines)
        assert (entry["kept_share"], entry["nominal_ratio"], entry["num_clips"]) == (None, 0.1, None)

    def test_where_every_question_failed_nothing_was_kept_or_dropped(self, tmp_path):
        entry = self.make(tmp_path, [{**line, "failed": True, "tokens_after": 0} for line in LINES])
        assert (entry["num_failed"], entry["kept_share"]) == (8, None)

    def test_without_a_method_all_is_kept(self, tmp_path):
        lines = [{name: value for name, value in line.items() if "tokens" not in name} for line in LINES]
        entry = self.make(tmp_path, lines, {"method": "none"})
        assert (entry["kept_share"], entry["nominal_ratio"]) == (1.0, 1.0)

    def test_parts_with_other_questions_are_apart(self, tmp_path):
        parts = [
            self.make(tmp_path / name, lines, num_questions=100)["part"]
            for name, lines in {
                "a": LINES,
                "b": LINES[::-1],
                "c": [*LINES[:-1], {**LINES[-1], "question_id": 9}],
            }.items()
        ]
        assert parts[0].startswith("8 of 100 questions, SHA-256 of their ids ")
        assert parts[0] == parts[1] != parts[2]

    def test_a_limit_beyond_the_whole_is_no_part(self, tmp_path):
        assert self.make(tmp_path, num_questions=8, limit=1000)["part"] is None

    def test_controls_are_marked(self, tmp_path):
        assert self.make(tmp_path, settings={"method": "uniform", "retention_ratio": 0.2})["control"] is True

    def test_a_cpu_is_the_hardware_where_there_is_no_gpu(self, tmp_path):
        assert self.make(tmp_path, environment={**ENVIRONMENT, "gpus": []})["hardware"] == "AMD EPYC, 2 CPUs"

    def test_records_without_machine_or_date_are_refused(self, tmp_path):
        with pytest.raises(TangoError, match=r"run\.json: its environment has no versions and no cpu; expected both"):
            self.make(tmp_path / "a", environment=None)
        with pytest.raises(TangoError, match="date: got None, expected of what was measured"):
            self.make(tmp_path / "b", date=None)

    @pytest.mark.parametrize(
        ("name", "benchmark", "set_"),
        [
            ("MLVU_MCQ_32frame", "MLVU", "dev"),
            ("videomme", "Video-MME", "without subtitles"),
            ("LongVideoBench", "LongVideoBench", "validation, without subtitles"),
            ("Video-MME with subtitles", "Video-MME", "with subtitles"),
            ("MLVU test", "MLVU", "test"),
            ("mvbench_action_count", "MVBench", "all"),
        ],
    )
    def test_the_set_follows_from_the_name_in_the_records(self, tmp_path, name, benchmark, set_):
        entry = self.make(tmp_path, [{**line, "benchmark": name} for line in LINES], limit=8)
        assert (entry["benchmark"], entry["set"]) == (benchmark, set_)

    def test_names_of_files_tell_runs_apart(self):
        changes: list[dict[str, Any]] = [
            {}, {"set": "b"}, {"part": "half"}, {"num_frames": 8}, {"nominal_ratio": 0.2}, {"date": "2026-11-22"},
            {"method": {"method": "tango", "options": {"alpha": 2.0}}},
        ]  # fmt: skip
        names = [file_name({**ENTRY, "model": "../Mädel/ X", **change}) for change in changes]
        assert len(set(names)) == len(changes)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*\.json", name) for name in names)


class TestPaper:
    def test_every_number_of_its_tables_is_a_good_entry(self):
        entries = list(paper_entries())
        assert [list(check_entry(entry)) for entry in entries if list(check_entry(entry))] == []
        # 37 rows, each with four benchmarks.
        assert Counter(entry["benchmark"] for entry in entries) == {known.name: 37 for known in BENCHMARKS}
        assert {entry["kind"] for entry in entries} == {"reported by the authors of Tango"}

    def test_a_number_of_table_1(self):
        (found,) = (
            entry for entry in paper_entries()
            if (entry["model"], entry["benchmark"], entry["name"], entry["nominal_ratio"])
            == ("LLaVA-OneVision-7B", "MLVU", "holitom", 0.15)
        )  # fmt: skip
        assert found["accuracy"] == 62.8
        assert found["set"] is None
        assert found["kept_share"] is None
        assert found["notes"] == "table 1 of the paper; a run of theirs, not a number of this method's own authors"


class TestCommittedFiles:
    PATHS = tuple(sorted((ROOT / "results" / "leaderboard").iterdir()))

    def test_all_pass(self):
        found = check_files(self.PATHS)
        assert found.mistakes == []
        assert len(found.entries) == len(self.PATHS) >= 38

    def test_one_that_is_broken_fails_by_name(self, tmp_path):
        texts = {path.name: path.read_text(encoding="utf-8") for path in self.PATHS}
        victim = sorted(texts)[5]
        broken = json.loads(texts[victim])
        texts[victim] = json.dumps({**broken, "num_correct": broken["num_correct"] + 1})
        (found,) = check_files([write(tmp_path, text, name) for name, text in texts.items()]).mistakes
        assert found.startswith(f"{tmp_path / victim}: accuracy: got ")

    def test_those_of_the_recorded_run_are_its_numbers(self):
        recorded = json.loads((ROOT / "results" / "mini_quick.json").read_text(encoding="utf-8"))
        entries = [entry for _, entry in check_files(self.PATHS).entries if "mini_quick" in (entry["notes"] or "")]
        found = {(e["benchmark"], e["method"]["method"], e["nominal_ratio"]): e for e in entries}
        assert len(found) == len(entries) == len(recorded["runs"])
        for run in recorded["runs"]:
            entry = found[run["benchmark"], run["method"], run["retention_ratio"] or 1.0]
            assert (entry["accuracy"], entry["interval"]) == (run["accuracy"], run["interval"])
            assert 100 * entry["kept_share"] == pytest.approx(run["tokens_percent"])
            assert (entry["num_asked"], entry["num_clips"]) == (run["num_questions"], run["num_clips"])
            assert entry["date"] == recorded["environment"]["date"][:10]
            assert entry["part"] is not None
