"""`Journal`: what is on the disk after a crash, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tango.errors import TangoError
from tango.evaluation import Answer, Journal
from tango.evaluation.journal import check_journal

CONFIG = {"method": {"method": "tango", "options": {"alpha": 2.0}}, "num_frames": 8, "versions": {"torch": "2.6"}}
ANSWER = Answer(
    text="A\nB \u2028 \U0001f600 \udce9", input_tokens=9, output_tokens=2, stages_ms={"tower": 1.5}, elapsed_ms=3.0,
    peak_bytes=7,
)  # fmt: skip


@pytest.fixture
def opened() -> Iterator[Callable[..., Journal]]:
    """`Journal`, with all of them closed at the end."""
    with ExitStack() as stack:

        def open_journal(*args: Any, **options: Any) -> Journal:
            journal = Journal(*args, **options)
            stack.callback(journal.close)
            return journal

        yield open_journal


def lines(folder) -> list[bytes]:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.jsonl"))).splitlines()


def test_an_answer_comes_back_as_it_was(opened, tmp_path):
    journal = opened(tmp_path / "run", CONFIG)
    journal.add("k", ANSWER)
    assert len(lines(tmp_path / "run")) == 1  # on the disk before close
    assert journal.get("k") is None  # of this run
    again = opened(tmp_path / "run", CONFIG)
    assert len(again) == 1
    assert again.get("k") == Answer(**{**vars(ANSWER), "cached": True})
    journal.close()
    journal.close()


def test_answers_of_all_processes_are_read_whatever_their_number(opened, tmp_path):
    for rank in range(3):
        opened(tmp_path, CONFIG, rank=rank).add(f"k{rank}", ANSWER)
    assert len(list(tmp_path.glob("*.jsonl"))) == 3
    journal = opened(tmp_path, CONFIG)
    assert [journal.get(f"k{rank}").cached for rank in range(3)] == [True] * 3


def test_failures_are_on_record_but_tried_again(opened, tmp_path):
    opened(tmp_path, CONFIG).add("k", Answer(text="", error="VideoReadError: gone"))
    assert b"VideoReadError: gone" in lines(tmp_path)[0]
    assert opened(tmp_path, CONFIG).get("k") is None


@pytest.mark.parametrize("num_bytes", [1, 2, 30])
def test_a_torn_line_costs_one_answer_and_no_later_one(opened, tmp_path, caplog, num_bytes):
    journal = opened(tmp_path, CONFIG)
    for key in "abc":
        journal.add(key, ANSWER)
    journal.close()
    [file] = tmp_path.glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-num_bytes])  # 1: the line's end alone
    again = opened(tmp_path, CONFIG)
    complete = num_bytes == 1
    assert [again.get(key) is not None for key in "abc"] == [True, True, complete]
    assert ("unfinished line" in caplog.text) is not complete
    again.add("d", ANSWER)
    last = opened(tmp_path, CONFIG)
    assert [last.get(key) is not None for key in "abcd"] == [True, True, complete, True]


@pytest.mark.parametrize(
    "junk", [b"[]\n", b"3\n", b'{"key": "x"}\n', b'{"key": "x", "text": "", "colour": 1}\n', b"\xff\n"]
)
def test_lines_that_are_no_answers_are_skipped(opened, tmp_path, caplog, junk):
    (tmp_path / "answers-00000.jsonl").write_bytes(junk)
    assert len(opened(tmp_path, CONFIG)) == 0
    assert "unfinished line" in caplog.text


def test_another_configuration_is_refused(opened, tmp_path):
    opened(tmp_path, CONFIG)
    opened(tmp_path, json.loads(json.dumps(CONFIG)))
    for change in ({"num_frames": 16}, {"method": {"method": "none"}}, {"siglip": "x"}):
        with pytest.raises(TangoError, match=r"holds answers of another configuration: got .*, there .*Use another"):
            opened(tmp_path, {**CONFIG, **change})
    with pytest.raises(TangoError, match="num_frames"):
        opened(tmp_path, {name: value for name, value in CONFIG.items() if name != "num_frames"})


def test_what_differs_is_named_and_nothing_else(opened, tmp_path):
    opened(tmp_path, CONFIG)
    with pytest.raises(TangoError) as error:
        opened(tmp_path, {**CONFIG, "versions": {"torch": "2.7"}})
    assert "got {'versions': {'torch': '2.7'}}, there {'versions': {'torch': '2.6'}}. Use" in str(error.value)


def test_a_part_can_be_checked_before_there_is_a_model(opened, tmp_path):
    part = {"versions": {"torch": "2.6"}}
    check_journal(tmp_path / "none", part)
    opened(tmp_path, {**CONFIG, "versions": {"torch": "2.6", "av": "15.1"}})
    check_journal(tmp_path, part)
    with pytest.raises(TangoError, match="another configuration"):
        check_journal(tmp_path, {"versions": {"torch": "2.7"}})
    with pytest.raises(TangoError, match="another configuration"):  # of a time when this was not written down
        check_journal(tmp_path, {**part, "content": {"checkpoint": "0"}})


@pytest.mark.parametrize("content", ["", "[]", "{", "3", "[" * 100_000])
def test_a_damaged_configuration_is_an_error(opened, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TangoError, match="no configuration of a journal"):
        opened(tmp_path, CONFIG)
