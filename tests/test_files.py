"""tango.files: whole or untouched."""

from __future__ import annotations

import json
import os

import pytest

from tango.files import write_bytes, write_json


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
