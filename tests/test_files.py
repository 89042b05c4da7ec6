"""tango.files: whole or untouched."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tango import WriteError
from tango.evaluation import Answer
from tango.evaluation.journal import Journal
from tango.files import make_folder, write_bytes, write_json
from tango.lab.training.recipe import load_state, save_state


def test_files_and_folders_are_made(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"x": [1, "ü"]})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"x": [1, "ü"]}
    assert os.listdir(tmp_path / "new") == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"unserialisable": object()})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Files can grow to this size: stands in for a full disk, for the system refuses in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_file_and_what_is_kept(tmp_path):
    write_bytes(tmp_path / "a.json", b"old")
    with room_for(1000), pytest.raises(WriteError) as error:
        write_bytes(tmp_path / "a.json", bytes(5000))
    message = (
        f"cannot write {str(tmp_path / 'a.json')!r}: [Errno 27] File too large; what was there before is untouched"
    )
    assert str(error.value) == message
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_journal_goes_on_after_a_full_disk(tmp_path):
    journal = Journal(tmp_path, {})
    journal.add("first", Answer(text="yes"))
    with room_for((tmp_path / "answers-00000.jsonl").stat().st_size + 20):
        with pytest.raises(WriteError, match=r"answers-00000\.jsonl': .*File too large; all answers before this one"):
            journal.add("second", Answer(text="no"))
        with contextlib.suppress(WriteError):
            journal.close()
    again = Journal(tmp_path, {})
    assert (again.get("first").text, again.get("second")) == ("yes", None)
    again.add("second", Answer(text="no"))
    again.close()
    last = Journal(tmp_path, {})
    assert last.get("second").text == "no"
    last.close()


def test_a_training_keeps_its_last_state(tmp_path):
    save_state(tmp_path / "state.pt", {"step": 1})
    with room_for(1000), pytest.raises(WriteError, match=r"state\.pt': .*the state before this one is kept"):
        save_state(tmp_path / "state.pt", {"step": 2, "weights": torch.zeros(100_000)})
    assert load_state(tmp_path / "state.pt") == {"step": 1}
    assert os.listdir(tmp_path) == ["state.pt"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="nothing has been done yet"):
        make_folder(tmp_path / "file" / "results")
