"""`tango.fingerprints`: equal for equal content, different for any other."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tango.fingerprints
from tango.containers import Video
from tango.fingerprints import of_checkpoint, of_code, of_content, of_file


def video(**changes: object) -> Video:
    frames = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    fields = {"frames": frames, "timestamps_s": torch.tensor([0.0, 1.0], dtype=torch.float64), "frame_indices": (0, 1),
              "num_source_frames": 2, "duration_s": 2.0, "fps": 1.0, "path": "a", "backend": "pyav"}  # fmt: skip
    return Video(**{**fields, **changes})


def test_of_a_file_is_the_sha_256_of_its_content(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert of_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert of_content(tmp_path / "a") == of_content(str(tmp_path / "a")) == of_content((tmp_path / "a").as_uri())


@pytest.mark.parametrize("settled", [False, True])
def test_another_content_of_the_same_size_and_times_is_seen(
    tmp_path: Path, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `cp -p` or rsync; also at once, before the file system's clock has gone on."""
    if settled:
        monkeypatch.setattr(tango.fingerprints, "_SETTLED_NS", 0)
    clip, other = tmp_path / "clip.mp4", tmp_path / "other.mp4"
    for path, byte in ((clip, b"a"), (other, b"b")):
        path.write_bytes(byte * 1000)
        os.utime(path, ns=(10**18, 10**18))
    before = of_file(clip)
    if settled:
        time.sleep(0.02)  # some clock ticks
    shutil.copy2(other, clip)
    assert clip.stat().st_mtime_ns == 10**18
    assert of_file(clip) == of_file(other) != before


def test_a_file_that_rests_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tango.fingerprints, "_SETTLED_NS", 0)
    (tmp_path / "a").write_bytes(b"a")
    first = of_file(tmp_path / "a")
    monkeypatch.setattr(tango.fingerprints, "_hashed", lambda _path: "read again")
    assert of_file(tmp_path / "a") == first
    (tmp_path / "b").write_bytes(b"a")
    assert of_file(tmp_path / "b") == "read again"


def test_a_file_of_the_hub_goes_by_the_name_of_its_content(tmp_path: Path) -> None:
    name = hashlib.sha256(b"weights").hexdigest()
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"weights")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(f"../blobs/{name}")
    (tmp_path / "copy.safetensors").write_bytes(b"weights")
    assert of_file(tmp_path / "snapshot" / "model.safetensors") == name == of_file(tmp_path / "copy.safetensors")


def test_a_folder_of_frames_goes_by_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, frames: dict[str, bytes]) -> str:
        for file, data in frames.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(data)
        return of_content(tmp_path / name)

    frames = {"0.jpg": b"a", "1.jpg": b"b"}
    assert folder("first", frames) == folder("again", dict(reversed(frames.items())))
    others = [{"0.jpg": b"b", "1.jpg": b"a"}, {"0.jpg": b"a", "2.jpg": b"b"}, {"0.jpg": b"a"}, {"0.jpg": b"ab"}]
    found = [folder(f"other{i}", other) for i, other in enumerate(others)]
    assert len({*found, of_content(tmp_path / "first")}) == 5


def test_what_is_in_memory_goes_by_its_values() -> None:
    grey = np.full((2, 4, 4, 3), 127, np.uint8)
    pictures = [Image.fromarray(frame) for frame in grey]
    assert of_content(pictures) == of_content([picture.copy() for picture in pictures])
    assert of_content(grey) == of_content(np.asfortranarray(grey))
    assert of_content(b"ab") == of_content(bytearray(b"ab")) == of_content(io.BytesIO(b"ab"))
    assert of_content(video()) == of_content(video(path="b", backend="decord"))
    changed = video().frames.clone()
    changed[1, 2, 3, 0] += 1
    different = [
        pictures, pictures[:1], [pictures[0], pictures[1].convert("L")], grey, grey.reshape(2, 4, 3, 4), grey + 1,
        grey.view(np.int8), torch.from_numpy(grey), torch.from_numpy(grey).bfloat16(), b"ab", [b"a", b"b"], b"", "ab",
        video(), video(frames=changed), video(timestamps_s=torch.tensor([0.0, 1.5])), {"a": 1}, {"a": 2},
    ]  # fmt: skip
    assert len({of_content(one) for one in different}) == len(different)


def test_an_open_file_stays_where_it_is() -> None:
    file = io.BytesIO(b"abcdef")
    file.seek(3)
    assert of_content(file) == of_content(b"abcdef")
    assert file.tell() == 3


@pytest.mark.parametrize("path", ["nowhere.mp4", "https://example.org/a.mp4", "a\0b", "/dev/null"])
def test_what_cannot_be_read_goes_by_its_text(path: str) -> None:
    assert of_content(path) == of_content(path)
    assert of_content(path) != of_content(path + "x")


class TestCheckpoint:
    FILES = (
        "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "merges.txt", "siglip/config.json",
    )  # fmt: skip

    def folder(self, place: Path) -> Path:
        for name in (*self.FILES, "README.md"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(name.encode())
        return place

    def test_is_the_same_elsewhere(self, tmp_path: Path) -> None:
        assert of_checkpoint(self.folder(tmp_path / "a")) == of_checkpoint(self.folder(tmp_path / "b"))

    @pytest.mark.parametrize("name", FILES)
    def test_every_file_that_is_read_counts(self, tmp_path: Path, name: str) -> None:
        before = of_checkpoint(self.folder(tmp_path))
        (tmp_path / name).write_bytes(b"x" * len(name))
        changed = of_checkpoint(tmp_path)
        (tmp_path / name).unlink()
        assert len({before, changed, of_checkpoint(tmp_path)}) == 3

    def test_others_do_not(self, tmp_path: Path) -> None:
        before = of_checkpoint(self.folder(tmp_path))
        (tmp_path / "README.md").write_bytes(b"x")
        (tmp_path / "optimizer.pt").write_bytes(b"x")
        assert of_checkpoint(tmp_path) == before


def test_the_code_has_one_that_follows_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tango"
    for name in ("fingerprints.py", "ops/merging.py", "report/tables.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("a")
    monkeypatch.setattr(tango.fingerprints, "__file__", str(root / "fingerprints.py"))
    found = []
    for name in (None, "report/tables.py", "ops/merging.py"):
        if name:
            (root / name).write_text("b")
        of_code.cache_clear()
        found.append(of_code())
    of_code.cache_clear()
    assert found[0] == found[1] != found[2]
