"""The forms of a video: each gives the frames of the same video as a file, or says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tango.errors import OptionError, VideoReadError
from tango.video.addresses import local_path
from tango.video.reading import load_video, read_video
from tango.video.sampling import sample_indices
from tests import clips

COUNT = 12


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.write_clip(tmp_path_factory.mktemp("a clip") / "clip.mp4", num_frames=COUNT, size=(64, 48))


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return np.stack([clips.draw_frame(i, (64, 48)) for i in range(COUNT)])


@pytest.fixture
def folder(tmp_path: Path, drawn: np.ndarray) -> Path:
    """Frames named so that the order of text is not the order of numbers, beside what is no frame."""
    path = tmp_path / "frames"
    path.mkdir()
    for i, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(path / f"frame_{i}.png")
    (path / "labels.json").write_text("{}")
    (path / ".hidden.png").write_bytes(b"no picture")
    return path


def reason(source: Any, **options: Any) -> str:
    with pytest.raises(VideoReadError) as caught:
        read_video(source, **{"num_frames": 2, **options})
    assert "\n" not in str(caught.value)
    return f"{caught.value.path}: {caught.value.reason}"


CONTENTS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "Path": Path,
    "address": lambda path: path.as_uri(),
    "address as Path": lambda path: Path(path.as_uri()),
    "address on localhost": lambda path: path.as_uri().replace("file://", "FILE://LocalHost"),
    "address that is not encoded": lambda path: f"file://{path}",
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
}


@pytest.mark.parametrize("form", CONTENTS)
def test_contents_in_any_form_are_the_file(form: str, file: Path) -> None:
    expected, read = read_video(file, num_frames=5), read_video(CONTENTS[form](file), num_frames=5)
    assert read.frames.equal(expected.frames)
    assert read.timestamps_s.equal(expected.timestamps_s)
    assert (read.frame_indices, read.duration_s) == (expected.frame_indices, expected.duration_s)
    assert read.path == (
        "<bytes>" if "byte" in form or "view" in form else "<file object>" if "IO" in form else str(file)
    )


def test_an_open_file_is_read_from_its_beginning_and_left_as_it_was(file: Path) -> None:
    with file.open("rb") as opened:
        opened.seek(100)
        assert read_video(opened, num_frames=1).path == str(file)
        assert (opened.tell(), opened.closed) == (100, False)


def test_a_pipe_is_read_from_where_it_is(file: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, file.read_bytes()[: 1 << 16])
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert read_video(pipe, num_frames=1).num_source_frames == COUNT


@pytest.mark.parametrize("name", [b"100% #1?.mp4", b"caf\xe9.mp4", "größe %20.mp4".encode()])
def test_odd_names(name: bytes, file: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path.write_bytes(file.read_bytes())
    for form in (path, str(path), path.as_uri(), f"file://{path}"):
        assert read_video(form, num_frames=1).num_source_frames == COUNT


def test_addresses_that_are_no_file_here() -> None:
    assert local_path("file:///a%20b/c.mp4") == "/a b/c.mp4"
    assert local_path("C:\\clip.mp4") == "C:\\clip.mp4"
    assert "it is on another machine ('server')" in reason("file://server/clip.mp4")
    assert "the path is not absolute" in reason("file://clip.mp4")
    assert "download it first" in reason("https://example.org/clip.mp4")
    assert "pass the bytes" in reason("data:video/mp4;base64,AAAA")
    missing = reason("file:///nowhere/clip%201.mp4")
    assert missing.startswith("file:///nowhere/clip%201.mp4: no such file")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"", "<bytes>: the file is empty"),
        (b"\0 no video", "<bytes>: it is damaged or no known kind of video"),
        (io.StringIO("text"), "<file object>: it is opened as text, expected a binary file; use mode 'rb'"),
        (None, "<NoneType>: it is of type NoneType; expected a path"),
        ({"path": "clip.mp4"}, "<dict>: it is of type dict"),
        ((i for i in "ab"), "<generator>: it is of type generator"),
        ([], "<list of 0 frames>: the list is empty"),
        ([1, 2], "frame 0 is of type int, expected an image, its path or a uint8 array"),
        ([[[0]]], "frame 0 is of type list"),
        ([np.zeros((4, 4, 3))], "frame 0 is float64 of shape (4, 4, 3), expected uint8"),
        ([np.zeros((4, 4), np.uint8)], "frame 0 is uint8 of shape (4, 4)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "got uint8 of shape (2, 3, 8, 8); move the channels to the end"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), "got uint8 of shape (0, 8, 8, 3)"),
        (torch.rand(2, 8, 8, 3), "got float32 of shape (2, 8, 8, 3); convert it"),
        ([Image.new("F", (4, 4))], "frame 0 has pixels of mode F, of no fixed range"),
    ],
)
def test_what_is_no_video(source: Any, expected: str) -> None:
    assert expected in reason(source)


def test_a_closed_file_and_a_name_in_bytes(file: Path) -> None:
    opened = file.open("rb")
    opened.close()
    assert "closed file" in reason(opened)
    assert "use os.fsdecode(name)" in reason(os.fsencode(file))


FRAMES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda drawn, _: drawn,
    "tensor": lambda drawn, _: torch.from_numpy(drawn),
    "arrays": lambda drawn, _: list(drawn),
    "tensors": lambda drawn, _: tuple(torch.from_numpy(drawn)),
    "images": lambda drawn, _: [Image.fromarray(pixels) for pixels in drawn],
    "paths": lambda _, folder: [str(folder / f"frame_{i}.png") for i in range(COUNT)],
    "Paths": lambda _, folder: [folder / f"frame_{i}.png" for i in range(COUNT)],
    "addresses": lambda _, folder: [(folder / f"frame_{i}.png").as_uri() for i in range(COUNT)],
    "encoded images": lambda _, folder: [(folder / f"frame_{i}.png").read_bytes() for i in range(COUNT)],
    "folder": lambda _, folder: folder,
    "folder's address": lambda _, folder: folder.as_uri(),
}


@pytest.mark.parametrize("form", FRAMES)
def test_frames_in_any_form(form: str, drawn: np.ndarray, folder: Path) -> None:
    source = FRAMES[form](drawn, folder)
    for num_frames in (1, 5, COUNT, 20):
        read = read_video(source, num_frames=num_frames)
        indices = sample_indices(COUNT, num_frames)
        np.testing.assert_array_equal(read.frames, drawn[indices])
        assert (read.frame_indices, read.num_source_frames, read.backend) == (tuple(indices), COUNT, "images")
        np.testing.assert_allclose(read.timestamps_s, indices / 3)  # three a second
        assert (read.fps, read.duration_s) == (3.0, 4.0)
    np.testing.assert_allclose(read_video(source, num_frames=2, fps=2).timestamps_s, [0, 5.5])
    with pytest.raises(OptionError, match="fps must be a positive number"):
        read_video(source, num_frames=2, fps=0)


def test_only_a_folders_times_are_known_without_a_rate(drawn: np.ndarray, folder: Path) -> None:
    taken = load_video(list(drawn), num_frames=None, usual=4)
    assert isinstance(taken, torch.Tensor)
    np.testing.assert_array_equal(taken, drawn)
    assert len(load_video(list(drawn), num_frames=3, usual=4)) == 3
    assert load_video(folder, num_frames=None, usual=4).frame_indices == tuple(sample_indices(COUNT, 4))
    assert load_video(list(drawn), num_frames=None, usual=4, fps=2).duration_s == COUNT / 2


def test_a_rate_for_a_file_is_refused(file: Path) -> None:
    for form in (file, file.read_bytes(), file.as_uri()):
        with pytest.raises(OptionError, match="a video file has its own"):
            read_video(form, num_frames=2, fps=3)


def test_frames_of_a_folder_that_are_not_taken_are_not_opened(folder: Path, drawn: np.ndarray) -> None:
    for i in range(1, COUNT - 1):
        (folder / f"frame_{i}.png").write_bytes(b"broken")
    np.testing.assert_array_equal(read_video(folder, num_frames=2).frames, drawn[[0, -1]])
    assert "frame 1 ('frame_1.png') cannot be read as an image" in reason(folder, num_frames=COUNT)


def test_folders_without_frames(tmp_path: Path) -> None:
    assert "it is a directory, and it is empty" in reason(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert "holds no images but, for example, 'clip.mp4'; name a video file" in reason(tmp_path)


def test_one_bad_frame_of_a_list_is_named(folder: Path, file: Path) -> None:
    paths = [folder / f"frame_{i}.png" for i in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    assert "frame 1 ('frame_1.png') cannot be read as an image" in reason(paths, num_frames=3)
    paths[1].write_bytes(b"no picture")
    assert "frame 1 ('frame_1.png')" in reason(paths, num_frames=1)  # also where it would not be taken
    paths[1].unlink()
    assert "frame 1 ('frame_1.png') is not there: no such file" in reason(paths)
    assert "frame 0 ('clip.mp4') cannot be read as an image" in reason([str(file)])


def test_sizes_must_agree(drawn: np.ndarray, folder: Path) -> None:
    frames = [Image.fromarray(pixels) for pixels in drawn]
    frames[3] = frames[3].resize((32, 48))
    frames[7] = frames[7].resize((16, 48))
    expected = "frame 3 has 32 x 48 pixels, the first 64 x 48; make them one size"
    assert expected in reason(frames)
    assert expected in reason([np.array(image) for image in frames])
    frames[3].save(folder / "frame_3.png")
    assert expected in reason(folder, num_frames=COUNT)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_modes_become_rgb(mode: str, drawn: np.ndarray) -> None:
    image = Image.fromarray(drawn[0])
    if mode == "I;16":
        grey = np.array(image.convert("L"))
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        assert image.mode == mode
        expected = np.repeat(grey[..., None], 3, axis=-1)
    else:
        image = image.convert(mode)
        expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(read_video([image], num_frames=1).frames[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright(orientation: int, drawn: np.ndarray, tmp_path: Path) -> None:
    """By the EXIF standard's own table: which side of the picture the first row and the first column are."""
    turned = {
        1: drawn[0], 2: drawn[0][:, ::-1], 3: drawn[0][::-1, ::-1], 4: drawn[0][::-1], 5: drawn[0].swapaxes(0, 1),
        6: np.rot90(drawn[0], -1), 7: drawn[0][::-1, ::-1].swapaxes(0, 1), 8: np.rot90(drawn[0]),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(drawn[0]).save(tmp_path / "phone.png", exif=exif)
    for form in ([tmp_path / "phone.png"], tmp_path, [Image.open(tmp_path / "phone.png")]):
        np.testing.assert_array_equal(read_video(form, num_frames=1).frames[0], turned)
    upright = Image.fromarray(np.ascontiguousarray(turned))
    assert read_video([tmp_path / "phone.png", upright], num_frames=2).frames.shape[1:] == turned.shape


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((10_000, 9_000), "= 90000000 pixels, at most 40000000 fit"),
        ((20_000, 10_000), "decompression bomb"),
    ],
)
def test_images_that_are_too_large(size: tuple[int, int], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (4, 4)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">2I", *size)  # what the header states
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        said = reason([path])
    assert "frame 0 ('bomb.png')" in said
    assert expected in said


def test_sizes_are_limited_as_those_of_a_file(folder: Path) -> None:
    paths = sorted(folder.glob("frame_*.png"))
    for form in (folder, paths):
        assert "raise max_frame_pixels" in reason(form, max_frame_pixels=64 * 48 - 1)
        assert "2 such frames take 18432 bytes, at most 18431 fit" in reason(form, max_bytes=2 * 64 * 48 * 3 - 1)
        read_video(form, num_frames=2, max_frame_pixels=64 * 48, max_bytes=2 * 64 * 48 * 3)


def test_images_that_are_several(tmp_path: Path, drawn: np.ndarray) -> None:
    pictures = [Image.fromarray(pixels) for pixels in drawn[:3]]
    pictures[0].save(tmp_path / "moving.gif", save_all=True, append_images=pictures[1:])
    assert "frame 0 ('moving.gif') has several pictures" in reason([tmp_path / "moving.gif"])
