"""Clips as mp4 files: read back by Tango's own reader, with their irregular times."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

import tango
from tango.errors import TangoError
from tango.mini import benchmark, files
from tango.mini.benchmark import benchmark_clip, clip_file, write_questions
from tango.mini.scenes import render_frame

# SHA-256 of the decoded planes of Y, Cb and Cr. H.264 leaves a decoder no choice, so they hold on every machine; clips
# drawn otherwise are another benchmark.
PIXELS = {
    "clip_0000.mp4": "bbae86fe1a5aaa511ba00ef5613242e638001d92e9b0181ed14b84d7052b4947",
    "clip_0007.mp4": "90961379cd90aa8c188664e53f9f955dd516c2adf0d35c7250f986fcce06556b",
    "blank_0000.mp4": "ec4fddcfff72c3284b9c0c5bad4e8a4cce85207c23298bc2696d82eb292958bd",
}


def planes(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])


def drawn(index: int) -> np.ndarray:
    clip = benchmark_clip(index)[0]
    return np.stack([render_frame(clip, k)[0] for k in range(clip.num_frames)])


@pytest.mark.parametrize("name", PIXELS)
def test_clips_are_the_same_pixels_on_every_machine(tmp_path, name):
    kind, _, index = Path(name).stem.partition("_")
    file = clip_file(tmp_path, int(index), blank=kind == "blank")
    assert file.name == name
    assert hashlib.sha256(planes(file).tobytes()).hexdigest() == PIXELS[name]


def test_coding_loses_nothing(tmp_path):
    frames = drawn(3)
    assert np.array_equal(planes(clip_file(tmp_path, 3)), files.to_yuv(frames))
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    assert np.abs(files.as_read(grey).astype(int) - grey).max() <= 1
    assert np.abs(files.as_read(frames).astype(float) - frames).mean() < 3  # colours of 2 x 2 pixels become one


def test_colours_follow_the_standard():
    """Y = Kr R + Kg G + Kb B on 16 to 235, Cb and Cr on 16 to 240 around 128 (ITU-R BT.601, 2.5)."""
    matrix = np.array([0.299, 0.587, 0.114])
    colour = np.random.default_rng(0).integers(0, 256, (50, 3))
    frames = np.broadcast_to(colour[:, None, None], (50, 4, 4, 3)).astype(np.uint8)
    y = colour @ matrix
    blue, red = (224 * (colour[:, c] - y) / (2 * (1 - matrix[c])) / 255 + 128 for c in (2, 0))
    coded = files.to_yuv(frames).reshape(50, -1).astype(float)
    wanted = np.stack([219 * y / 255 + 16, blue, red], axis=1)
    assert np.abs(coded[:, [0, 16, 20]] - wanted).max() <= 0.51
    assert np.abs(files.as_read(frames).astype(int) - frames).max() <= 3


def test_a_clip_says_what_its_colours_mean(tmp_path):
    with av.open(str(clip_file(tmp_path, 0))) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)  # SMPTE 170M, which is BT.601; limited
    assert clip_file(tmp_path, 0).stat().st_size < 500_000


def test_a_clip_comes_back_as_it_was_drawn(tmp_path):
    clip, _ = benchmark_clip(0)
    video = tango.read_video(clip_file(tmp_path, 0), num_frames=16)
    assert video.num_source_frames == clip.num_frames
    assert np.abs(video.timestamps_s.numpy() - clip.times_s[list(video.frame_indices)]).max() < 1e-6
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["clip_0000.mp4"]
    # What training sees, to within the reader's rounding.
    expected = files.as_read(drawn(0)[list(video.frame_indices)])
    assert np.abs(video.frames.numpy().astype(int) - expected).max() <= 4


def test_the_toolkits_readers_see_the_same(tmp_path):
    """The toolkits' own readers."""
    file, wanted, seen = str(clip_file(tmp_path, 0)), files.as_read(drawn(0)), {}
    if find_spec("decord"):
        import decord

        seen["decord"] = decord.VideoReader(file)[:].asnumpy()
    if find_spec("cv2"):
        import cv2

        capture = cv2.VideoCapture(file)
        seen["cv2"] = np.stack([capture.read()[1][..., ::-1] for _ in range(len(wanted))])
    if not seen:
        pytest.skip("neither decord nor OpenCV is installed")
    for pixels in seen.values():
        assert np.abs(pixels.astype(int) - wanted).max() <= 4


def test_without_x264_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with pytest.raises(TangoError, match="without x264"):
        clip_file(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_crash_leaves_no_half_file(tmp_path, monkeypatch):
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        clip_file(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_blank_clip_has_the_times_and_nothing_to_see(tmp_path):
    seen, blank = (tango.read_video(clip_file(tmp_path, 0, blank=b), num_frames=16) for b in (False, True))
    assert (blank.timestamps_s == seen.timestamps_s).all()
    assert (blank.frames.int() - 127).abs().max() <= 1
    assert {path.name for path in tmp_path.glob("*.mp4")} == {"clip_0000.mp4", "blank_0000.mp4"}


def test_of_several_that_want_a_clip_one_writes_it(tmp_path, monkeypatch):
    written, meeting = [], threading.Barrier(4)

    def write(path: Path, *_: object, **__: object) -> None:
        written.append(path)
        time.sleep(0.05)
        path.write_bytes(b"")

    def ask(_: int) -> Path:
        meeting.wait()
        return clip_file(tmp_path, 0)

    monkeypatch.setattr(benchmark, "write_clip", write)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {tmp_path / "clip_0000.mp4"}
    assert len(written) == 1


def test_questions_are_written_with_their_videos(tmp_path):
    lines = [json.loads(line) for line in write_questions(tmp_path, 2).read_text().splitlines()]
    assert {line["video"] for line in lines} == {"clip_0000.mp4", "clip_0001.mp4"}
    assert [line["answer"] for line in lines] == [q.answer for i in range(2) for q in benchmark_clip(i)[1]]
