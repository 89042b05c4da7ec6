"""Keys of questions, the options of `generate`, and files that are written whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tango.errors import OptionError
from tango.evaluation import Question, environment, write_json
from tango.evaluation.generation import cut_at
from tango.evaluation.preparation import generate_options

QUESTION = Question(
    messages=[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Who?"}]}],
    generate_options={"temperature": 0, "until": ["\n"]},
)


class TestKey:
    def test_is_the_same_for_equal_questions(self):
        content = ({"video": Path("a.mp4"), "type": "video"}, {"text": "Who?", "type": "text"})
        equal = replace(QUESTION, messages=({"content": content, "role": "user"},))
        equal = replace(equal, generate_options={"until": ["\n"], "temperature": 0})
        assert equal.key == QUESTION.key
        assert len(QUESTION.key) == 64

    @pytest.mark.parametrize(
        "change",
        [
            {"prefill": "A"},
            {"num_frames": 8},
            {"max_new_tokens": 1},
            {"generate_options": {"temperature": 0}},
            {"messages": [{"role": "user", "content": "Who?"}]},
            {"messages": [{"role": "system", "content": "Be brief."}, *QUESTION.messages]},
        ],
    )
    def test_differs_for_all_that_determines_the_answer(self, change):
        assert replace(QUESTION, **change).key != QUESTION.key


class TestGenerateOptions:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, {"do_sample": False}),
            ({"temperature": 0, "top_p": None, "num_beams": 1, "until": ["\n"]}, {"do_sample": False, "num_beams": 1}),
            ({"temperature": 0.0, "top_p": 0.9, "do_sample": True}, {"do_sample": False}),
            ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
            ({"temperature": 0.7, "do_sample": False}, {"do_sample": False}),
            ({"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5}),
        ],
    )
    def test_are_what_generate_takes(self, given, expected):
        question = replace(QUESTION, generate_options=given, max_new_tokens=7)
        assert generate_options(question) == {**expected, "max_new_tokens": 7}

    def test_unknown_ones_are_refused(self):
        with pytest.raises(OptionError, match="no option tempreature"):
            generate_options(replace(QUESTION, generate_options={"tempreature": 1}))


@pytest.mark.parametrize(
    ("text", "until", "expected"),
    [
        ("A. yes\nB", ["\n"], "A. yes"), ("A stop B end", ["end", "stop"], "A"), ("A\n", None, "A"), ("A.B", ".", "A"),
        ("A", ["", "x"], "A"), ("\nA", ["\n"], ""),
    ],
)  # fmt: skip
def test_texts_are_cut_at_the_first_stop_string(text, until, expected):
    assert cut_at(text, until) == expected


class TestWriteJson:
    def test_writes_into_new_folders(self, tmp_path):
        write_json(tmp_path / "a" / "b.json", {"é": 1})
        assert json.loads((tmp_path / "a" / "b.json").read_text(encoding="utf-8")) == {"é": 1}

    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path):
        write_json(tmp_path / "x.json", 1)
        with pytest.raises(TypeError):
            write_json(tmp_path / "x.json", {"a": [1, 2, object()]})
        assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
        assert json.loads((tmp_path / "x.json").read_text()) == 1


def test_the_environment_is_plain_and_names_the_versions():
    found = json.loads(json.dumps(environment()))
    assert {"tango", "torch", "transformers", "python", "av"} <= found["versions"].keys()
    assert isinstance(found["gpus"], list)
