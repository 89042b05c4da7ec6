"""The frame reader against plain sequential decoding, on sound, odd and damaged files."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest

import tango
from tango.errors import UnknownNameError, VideoReadError
from tango.video import decord_worker, reader
from tango.video.reading import read_video
from tango.video.sampling import sample_indices
from tests import clips

# Containers that tell when each frame is shown: here a pass over everything would be a waste.
FAST = [n for n in [*clips.ENCODED, *clips.CUT] if not n.endswith((".avi", ".h264", ".mpg"))]
Clip = Callable[[str], Path]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Return the path of a sound clip by its name, written at the first request."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name: str) -> Path:
        try:
            return clips.write_named(name, folder)
        except LookupError as error:
            pytest.skip(str(error))

    return get


def reason_not_to_read(path: object, **options: object) -> str:
    """Return why a file is refused, after the checks that hold for every refusal."""
    with pytest.raises(VideoReadError) as caught:
        read_video(path, **{"num_frames": 4, **options})
    error = caught.value
    assert error.path == str(path)
    assert str(error) == f"cannot read video {str(path)!r}: {error.reason}"
    assert "\n" not in str(error)
    assert re.search("[;:] .*(check|copy|lfs pull|convert|name|install|use|raise|download)", error.reason), "no way out"
    return error.reason


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (1, 5), (2, 2), (7, 3), (40, 40), (40, 64), (9000, 32)])
def test_samples_are_even_and_hold_both_ends(count: int, wanted: int) -> None:
    indices = sample_indices(count, wanted)
    assert len(indices) == wanted
    assert indices[0] == 0
    assert indices[-1] == (count - 1 if wanted > 1 else 0)
    assert set(np.diff(indices)) <= {(count - 1) // max(wanted - 1, 1), (count - 1) // max(wanted - 1, 1) + 1}


@pytest.mark.parametrize("name", [*clips.ENCODED, *clips.CUT])
def test_frames_are_those_of_sequential_decoding(name: str, clip: Clip) -> None:
    expected = clips.decode_everything(clip(name))
    first = clips.CUT[name][2] if name in clips.CUT else 0
    assert [clips.read_number(frame) for frame in expected] == list(range(first, first + len(expected)))
    for num_frames in (1, 2, 5, len(expected), len(expected) + 3):
        read = read_video(clip(name), num_frames=num_frames)
        assert read.num_source_frames == len(expected)
        assert read.frame_indices == tuple(sample_indices(len(expected), num_frames))
        assert len(read.frames) == num_frames
        for pixels, i in zip(read.frames.numpy(), read.frame_indices, strict=True):
            np.testing.assert_array_equal(pixels, expected[i])


@pytest.mark.parametrize("name", FAST)
def test_sound_files_are_read_by_seeking(name: str, clip: Clip, monkeypatch: Patch) -> None:
    monkeypatch.delattr(reader, "_frames_in_order")  # so that the fall-back to decoding everything is an error
    read_video(clip(name), num_frames=7)


def test_seeking_decodes_a_small_part(tmp_path: Path, monkeypatch: Patch) -> None:
    path = clips.write_clip(tmp_path / "long.mp4", num_frames=300, gop=50, b_frames=0)
    decoded = []
    decode_from = reader._decode_from
    monkeypatch.setattr(reader, "_decode_from", lambda *a: (decoded.append(f) or f for f in decode_from(*a)))
    read = read_video(path, num_frames=3)
    assert [clips.read_number(frame) for frame in read.frames.numpy()] == [0, 149, 299]
    assert len(decoded) == 1 + 50 + 50


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotated_clips_come_upright(clockwise: int, tmp_path: Path, clip: Clip) -> None:
    path = tmp_path / "phone.mp4"
    path.write_bytes(clip("plain.mp4").read_bytes())
    clips.rotate_display(path, clockwise_degrees=clockwise)
    expected = np.rot90(clips.decode_everything(path), k=-clockwise // 90, axes=(1, 2))
    read = read_video(path, num_frames=len(expected))
    np.testing.assert_array_equal(read.frames.numpy(), expected)


def test_an_edit_list_that_cuts_the_end_is_no_damage(tmp_path: Path, clip: Clip) -> None:
    data = bytearray(clip("edit_list.mp4").read_bytes())
    duration = data.index(b"elst") + 12
    movie = data.index(b"mvhd") + 16
    ticks_per_s = int.from_bytes(data[movie : movie + 4], "big")  # 1000, and as the video's from FFmpeg 9 on
    data[duration : duration + 4] = (ticks_per_s * 6 // 10).to_bytes(4, "big")
    path = tmp_path / "both_ends.mp4"
    path.write_bytes(data)
    read = read_video(path, num_frames=3)
    assert read.num_source_frames == 15
    assert [clips.read_number(frame) for frame in read.frames.numpy()] == [8, 15, 22]


def test_frames_that_vp8_never_shows_are_not_counted(tmp_path: Path) -> None:
    if "libvpx" not in av.codecs_available:
        pytest.skip("this PyAV cannot encode VP8")
    plain = clips.write_clip(tmp_path / "plain.webm", codec="libvpx")
    path = clips.hide_vp8_frame(plain, tmp_path / "hidden.webm", number=5)
    read = read_video(path, num_frames=39)
    assert read.num_source_frames == 39
    assert [clips.read_number(frame) for frame in read.frames.numpy()] == [i for i in range(40) if i != 5]


def test_threads_may_read_at_the_same_time(clip: Clip) -> None:
    path = clip("plain.mp4")
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: read_video(path, num_frames=6).frames, range(8)))
    assert all(frames.equal(read[0]) for frames in read)


@pytest.mark.parametrize("name", [n for n in [*clips.ENCODED, *clips.CUT] if n not in ("one_frame.mp4", "uneven.mp4")])
def test_times_of_even_clips_start_at_their_first_displayed_frame(name: str, clip: Clip) -> None:
    count = read_video(clip(name), num_frames=1).num_source_frames
    read = read_video(clip(name), num_frames=count)
    np.testing.assert_allclose(read.timestamps_s, np.arange(count) / 25, atol=1e-9)
    assert read.duration_s == pytest.approx(count / 25)
    assert read.fps == pytest.approx(25)


def test_times_of_an_uneven_clip(clip: Clip) -> None:
    read = read_video(clip("uneven.mp4"), num_frames=40)
    np.testing.assert_allclose(read.timestamps_s, np.array(clips.UNEVEN_MS) / 1000, atol=1e-4)
    assert read.duration_s > read.timestamps_s[-1]
    assert read.fps == pytest.approx(40 / read.duration_s)


def test_one_frame_repeats(clip: Clip) -> None:
    read = read_video(str(clip("one_frame.mp4")), num_frames=3)
    assert read.frame_indices == (0, 0, 0)
    assert read.timestamps_s.tolist() == [0, 0, 0]
    assert read.frames[0].equal(read.frames[2])
    assert (read.num_source_frames, read.backend) == (1, "pyav")


def test_bad_arguments(clip: Clip) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        sample_indices(0, 3)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        read_video(clip("plain.mp4"), num_frames=0)
    with pytest.raises(UnknownNameError, match=r"'opencv'.*auto, decord, pyav, torchcodec"):
        read_video(clip("plain.mp4"), num_frames=1, backend="opencv")


BYTES = {
    "empty.mp4": (b"", "empty"),
    "notes.txt": (b"hello\nworld\n" * 50, "text"),
    "art.txt": (b"\x1b[31mred\x1b[0m\n" * 200, "text"),
    "page.mp4": ("<html>404 – not found</html>".encode() * 9, "text"),
    "noise.mp4": (random.Random(0).randbytes(20_000), "damaged or no known kind of video"),
    "sound.wav": (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(40), "no known kind of video"),
    "photo.png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "image"),
    "photo.mp4": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99), "image"),
    "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(99), "image"),
    "moving.gif": (b"GIF89a" + bytes(99), "damaged"),
    "pointer.mp4": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 49\n", "git lfs pull"),
    "wide.m3u8": ("#EXTM3U\n".encode("utf-16") + bytes(99), "no known kind of video"),
}


@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_no_video(name: str, tmp_path: Path) -> None:
    data, said = BYTES[name]
    (tmp_path / name).write_bytes(data)
    assert said in reason_not_to_read(tmp_path / name)


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.mp4"])
@pytest.mark.parametrize("binary_tail", [b"", b"\n#\0"])
def test_playlists_are_not_followed(name: str, binary_tail: bytes, tmp_path: Path, clip: Clip) -> None:
    target = clip("plain.ts")
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{target}\n#EXT-X-ENDLIST\n"
    text = f"ffconcat version 1.0\nfile '{target}'\n" if name.endswith("concat") else hls
    (tmp_path / name).write_bytes(text.encode() + binary_tail)
    assert re.search("text|no known kind", reason_not_to_read(tmp_path / name))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert "no such file" in reason_not_to_read(tmp_path / "missing.mp4")
    assert "no such file" in reason_not_to_read("http://127.0.0.1:9/clip.mp4")
    assert "directory" in reason_not_to_read(tmp_path)
    assert "null" in reason_not_to_read("a\0b.mp4")


def test_odd_but_real_names_and_titles(tmp_path: Path, clip: Clip, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    data = clip("plain.mp4").read_bytes().replace(b"Lavf", b"\xff\xfe\xfdf")  # in a text that should be UTF-8
    for name in ("pipe:0", "concat:a|b.mp4", "-i %d.mp4", "名前.mp4", os.fsdecode(b"\xff.mp4")):
        Path(name).write_bytes(data)
        assert read_video(name, num_frames=2).num_source_frames == 40


def test_pipes_and_devices_are_refused_without_opening_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    code = "import sys; from tango.video.reading import read_video\ntry: read_video(sys.argv[1], num_frames=1)\n"
    code += "except OSError as error: print(error.reason)"
    for path in (tmp_path / "pipe.mp4", "/dev/zero"):
        assert "pipe or device" in run_python(code, str(path), timeout_s=30).stdout


def test_files_without_pictures(tmp_path: Path) -> None:
    assert "no readable video stream (only: audio)" in reason_not_to_read(clips.write_audio(tmp_path / "song.m4a"))
    with av.open(str(tmp_path / "nothing.mp4"), "w") as container:
        container.add_stream("mpeg4", rate=25)
        container.start_encoding()
    assert "no readable video stream" in reason_not_to_read(tmp_path / "nothing.mp4")


@pytest.mark.parametrize(
    "name", ["plain.mp4", "index_first.mp4", "fragmented.mp4", "plain.mkv", "vp9.webm", "mpeg4.avi"]
)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_truncated_files(name: str, part: float, tmp_path: Path, clip: Clip) -> None:
    data = clip(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(part * len(data))])
    assert re.search("cut short|damaged|no readable", reason_not_to_read(path))


def test_file_cut_exactly_between_two_frames(tmp_path: Path, clip: Clip) -> None:
    with av.open(str(clip("index_first.mp4"))) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "half.mp4"
    path.write_bytes(clip("index_first.mp4").read_bytes()[: ends[19]])
    assert "20 of 40 frames" in reason_not_to_read(path)


def test_damage_inside_the_pictures(tmp_path: Path, clip: Clip) -> None:
    data = bytearray(clip("plain.mp4").read_bytes())
    middle = data.index(b"mdat") + 3000
    data[middle : middle + 3000] = random.Random(0).randbytes(3000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    assert "damaged" in reason_not_to_read(path, num_frames=40)


def test_frames_of_changing_size_are_refused(tmp_path: Path) -> None:
    small = clips.write_clip(tmp_path / "small.h264", num_frames=5)
    large = clips.write_clip(tmp_path / "large.h264", num_frames=5, size=(320, 192))
    (tmp_path / "both.h264").write_bytes(small.read_bytes() + large.read_bytes())
    assert "frame size changes" in reason_not_to_read(tmp_path / "both.h264")


def test_time_limit(clip: Clip) -> None:
    assert "timeout_s" in reason_not_to_read(clip("plain.mp4"), timeout_s=0.0)


def run_python(code: str, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, so that a hang or a crash in native code fails one test only."""
    paths = [str(Path(tango.__file__).parents[1]), str(Path(__file__).parent)]
    code = f"import sys; sys.path[:0] = {paths}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout_s, check=True
    )


def read_damaged(folder: Path, sources: list[Path]) -> None:
    """Read 40 damaged files and print what came of each; the process for `test_damage_at_random`."""
    rng, outcomes = random.Random(20240607), []
    for k in range(40):
        source = sources[k % len(sources)]
        path = folder / f"{k}{source.suffix}"
        path.write_bytes(clips.damage(source.read_bytes(), rng))
        try:
            read = read_video(path, num_frames=6)
            outcomes.append([read.num_source_frames, len(read.frames), list(read.frame_indices)])
        except VideoReadError as error:
            outcomes.append(error.reason)
    print(json.dumps(outcomes))


def test_damage_at_random(tmp_path: Path, clip: Clip) -> None:
    sources = [str(clip(n)) for n in ("plain.mp4", "index_first.mp4", "with_audio.mp4", "edit_list.mp4", "uneven.mp4")]
    code = "import sys, test_video as t\nfrom pathlib import Path\n"
    code += "t.read_damaged(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])"
    done = run_python(code, str(tmp_path), *sources, timeout_s=120)
    assert done.stderr == "", "FFmpeg's chatter reached the user"
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 40
    for k, outcome in enumerate(outcomes):
        if isinstance(outcome, list):
            count = 32 if "edit_list" in sources[k % len(sources)] else 40
            assert outcome == [count, 6, sample_indices(count, 6).tolist()]
    assert {type(o) for o in outcomes} == {str, list}, "the damage should spare some files"


def test_import_is_light() -> None:
    code = "import sys, tango.video.reading; print(sorted({'av', 'torch', 'decord', 'torchcodec'} & set(sys.modules)))"
    assert run_python(code, timeout_s=60).stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["auto", "torchcodec", "decord"])
def test_without_pyav(backend: str, clip: Clip, monkeypatch: Patch) -> None:
    path = clip("plain.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in reason_not_to_read(path, backend=backend)


def test_torchcodec_that_does_not_load(tmp_path: Path, clip: Clip, monkeypatch: Patch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torchcodec.py").write_text("raise OSError('libnvrtc.so.13: no such file\\nmore')")
    reason = reason_not_to_read(clip("plain.mp4"), backend="torchcodec")
    assert "torchcodec does not load, or cannot decode this file (libnvrtc.so.13: no such file)" in reason
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert "use backend='auto'" in reason_not_to_read(clip("plain.mp4"), backend="torchcodec")


needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
@pytest.mark.parametrize("name", ["plain.mp4", "uneven.mp4", "with_audio.mp4"])
def test_other_backends_agree_on_plain_clips(backend: str, name: str, clip: Clip) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    if backend == "torchcodec":  # decord must not load beside PyAV: both bring an FFmpeg
        try:
            import torchcodec  # noqa: F401
        except (OSError, RuntimeError) as error:
            pytest.skip(f"torchcodec does not load here: {str(error).splitlines()[0]}")
    exact, other = (read_video(clip(name), num_frames=9, backend=b) for b in ("auto", backend))
    assert other.frames.equal(exact.frames)
    assert other.frame_indices == exact.frame_indices
    np.testing.assert_allclose(other.timestamps_s, exact.timestamps_s, atol=1e-3)
    assert (other.backend, other.num_source_frames) == (backend, 40)
    assert other.fps == pytest.approx(exact.fps, abs=0.5)


@needs_decord
def test_decord_shows_what_an_edit_list_hides(clip: Clip) -> None:
    assert read_video(clip("edit_list.mp4"), num_frames=4, backend="decord").num_source_frames == 40
    assert read_video(clip("edit_list.mp4"), num_frames=4).num_source_frames == 32


@needs_decord
def test_decord_times_where_the_container_has_none(clip: Clip) -> None:
    read = read_video(clip("b_frames.avi"), num_frames=40, backend="decord")
    np.testing.assert_allclose(read.timestamps_s, np.arange(40) / 25)


@needs_decord
@pytest.mark.parametrize("name", ["plain.ts", "open_gop.ts", "negative.mkv"])
def test_decord_is_refused_where_it_reads_other_frames(name: str, clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.startswith("negative"):
        options = {"avoid_negative_ts": "disabled"}
        clips.write_clip(path, pts_ms=[40 * i - 600 for i in range(40)], container_options=options)
    else:
        path = clip(name)
    assert "decord reads other frames" in reason_not_to_read(path, backend="decord")


@needs_decord
@pytest.mark.parametrize("name", ["open_gop.mp4", "b_frames.avi", "mpeg4.avi", "mpeg2.mpg"])
def test_decord_gets_the_right_frames_where_its_seeks_fail(name: str, clip: Clip) -> None:
    read = read_video(clip(name), num_frames=7, backend="decord")
    assert [clips.read_number(frame) for frame in read.frames.numpy()] == list(sample_indices(40, 7))


@needs_decord
def test_decord_says_in_one_line_why_it_fails(clip: Clip, capfd: pytest.CaptureFixture[str]) -> None:
    assert "decord failed" in reason_not_to_read(clip("raw.h264"), backend="decord")
    assert capfd.readouterr() == ("", "")


def test_without_decord(clip: Clip, monkeypatch: Patch) -> None:
    monkeypatch.setattr(decord_worker, "find_spec", lambda _: None)
    assert "pip install decord" in reason_not_to_read(clip("plain.mp4"), backend="decord")


def fake_worker(monkeypatch: Patch, code: str, *arguments: str) -> None:
    monkeypatch.setattr(decord_worker, "find_spec", lambda _: object())
    monkeypatch.setattr(decord_worker, "_COMMAND", (sys.executable, "-c", code, *arguments))


def test_hanging_worker_is_killed(tmp_path: Path, clip: Clip, monkeypatch: Patch) -> None:
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    fake_worker(monkeypatch, code, str(tmp_path / "pid"))
    assert "took over 3 s and was killed" in reason_not_to_read(clip("plain.mp4"), backend="decord", timeout_s=3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_crashing_worker(clip: Clip, monkeypatch: Patch) -> None:
    fake_worker(monkeypatch, "import os; os.kill(os.getpid(), 11)")
    assert "ended with -11" in reason_not_to_read(clip("plain.mp4"), backend="decord")


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_every_backend_refuses_what_is_no_video(backend: str, tmp_path: Path, clip: Clip) -> None:
    assert "no such file" in reason_not_to_read(tmp_path / "missing.mp4", backend=backend)
    path = tmp_path / "list.m3u8"
    path.write_bytes(f"#EXTM3U\n#EXTINF:1.6,\n{clip('plain.ts')}\n#\0".encode())
    assert "no known kind of video" in reason_not_to_read(path, backend=backend)
