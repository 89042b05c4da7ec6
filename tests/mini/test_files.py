"""Clips as mp4 files: read back by Tango's own reader, with their irregular times."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tango
from tango.mini import benchmark, files
from tango.mini.benchmark import benchmark_clip, clip_file, write_questions
from tango.mini.scenes import render_frame


def test_a_clip_comes_back_as_it_was_drawn(tmp_path):
    clip, _ = benchmark_clip(0)
    file = clip_file(tmp_path, 0)
    video = tango.read_video(file, num_frames=16)
    assert video.num_source_frames == clip.num_frames
    assert np.abs(video.timestamps_s.numpy() - clip.times_s[list(video.frame_indices)]).max() < 1e-6
    drawn = np.stack([render_frame(clip, k)[0] for k in video.frame_indices])
    assert np.abs(video.frames.numpy().astype(int) - drawn).mean() < 6  # sensor noise does not survive the codec
    assert [path.name for path in tmp_path.iterdir()] == ["clip_0000.mp4"]


def test_training_frames_look_like_those_of_a_file(tmp_path):
    """What the codec does to the sampled frames alone is close to what it does to them in the whole file."""
    clip, _ = benchmark_clip(1)
    video = tango.read_video(clip_file(tmp_path, 1), num_frames=16)
    indices = np.array(video.frame_indices)
    drawn = np.stack([render_frame(clip, k)[0] for k in indices])
    coded = files.through_codec(drawn, clip.times_s[indices])
    assert coded.shape == drawn.shape
    between = np.abs(coded.astype(int) - video.frames.numpy()).mean()
    assert between < np.abs(coded.astype(int) - drawn).mean()


def test_a_crash_leaves_no_half_file(tmp_path, monkeypatch):
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        clip_file(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_blank_clip_has_the_times_and_nothing_to_see(tmp_path):
    seen, blank = (tango.read_video(clip_file(tmp_path, 0, blank=b), num_frames=16) for b in (False, True))
    assert (blank.timestamps_s == seen.timestamps_s).all()
    assert (blank.frames.int() - 127).abs().max() <= 3
    assert {path.name for path in tmp_path.iterdir()} == {"clip_0000.mp4", "blank_0000.mp4"}


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
