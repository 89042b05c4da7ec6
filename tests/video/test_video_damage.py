"""Damaged files: one outcome each, never fewer frames without a word; intact files of many kinds are left in peace."""

from __future__ import annotations

import random
import warnings
from importlib.util import find_spec
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
from PIL import Image

from tango.errors import DamagedVideoWarning, VideoReadError
from tango.video.reading import read_video
from tango.video.source import Source
from tests import clips

NUM_FRAMES = 60
KINDS = {
    "h264.ts": {},
    "h264.mkv": {},
    "h264.flv": {},
    "h264.mov": {},
    "raw.h264": {},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "hevc.mkv": {"codec": "libx265"},
    "wmv2.wmv": {"codec": "wmv2"},
    "mpeg2.ts": {"codec": "mpeg2video"},
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


def intact(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        if KINDS[name].get("codec", "libx264") not in av.codecs_available:
            pytest.skip("this PyAV has no encoder for it")
        clips.write_clip(path, num_frames=NUM_FRAMES, gop=15, **KINDS[name])
    return path


def outcome(path: Path) -> tuple[object, ...]:
    """What reading a file comes to: why not, or how many frames with which pixels, and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read = read_video(path, num_frames=6)
        except VideoReadError as error:
            return (error.reason,)
    return read.num_source_frames, read.frames.numpy().tobytes(), tuple(str(w.message) for w in said)


@pytest.mark.parametrize("name", KINDS)
def test_damage_has_one_outcome(name: str, folder: Path, tmp_path: Path) -> None:
    data = intact(folder, name).read_bytes()
    refused = 0
    for k in range(4):
        rng, changed = random.Random(k), bytearray(data)
        is_hole = k < 2  # a bad sector
        if is_hole:
            at = rng.randrange(len(data) // 5, len(data) * 4 // 5)
            changed[at : at + 4096] = bytes(len(changed[at : at + 4096]))
        else:
            for _ in range(k):
                changed[rng.randrange(len(data) // 5, len(data))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{k}_{name}"
        path.write_bytes(changed)
        first, *others = [outcome(path) for _ in range(4)]
        assert all(other == first for other in others)
        refused += len(first) == 1
        if is_hole and name != "raw.h264":  # which lists its frames nowhere; a bit can also hide a frame
            assert len(first) == 1 or first[0] == NUM_FRAMES, "fewer frames without a word"
    assert refused > 0


@pytest.mark.parametrize("name", KINDS)
def test_intact_files_raise_no_word(name: str, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_video(intact(folder, name), num_frames=6).num_source_frames == NUM_FRAMES


def test_what_ffmpeg_only_complains_of_comes_with_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = intact(folder, "raw.h264")  # read in order
    monkeypatch.setattr(Source, "decoder_errors", lambda *_, **__: ["ignoring overflow\n"])
    with pytest.warns(DamagedVideoWarning, match=r"raw\.h264.*ignoring overflow; check that it plays"):
        assert read_video(path, num_frames=4).num_source_frames == NUM_FRAMES


def put_noise(path: Path, *, packet: int) -> None:
    """Overwrite a third of a coded picture."""
    with av.open(str(path)) as container:
        coded = [bytes(p) for p in container.demux(video=0) if p.size][packet]
    data = bytearray(path.read_bytes())
    at = data.index(coded[-64:]) + 64 - len(coded) // 2
    data[at : at + len(coded) // 3] = random.Random(0).randbytes(len(coded) // 3)
    path.write_bytes(data)


@pytest.mark.parametrize("backend", ["auto", "decord"])
@pytest.mark.parametrize("name", ["mjpeg.avi", "ffv1.mkv"])
def test_pictures_that_are_not_the_same_twice_are_refused(name: str, backend: str, tmp_path: Path) -> None:
    """Decoders of single or lossless pictures leave what they cannot decode as their memory was."""
    if backend == "decord" and find_spec("decord") is None:
        pytest.skip("decord is not installed")
    options = {"level": "3", "slicecrc": "1"} if name == "ffv1.mkv" else {}
    pix_fmt = "yuvj420p" if name == "mjpeg.avi" else "yuv420p"
    path = clips.write_clip(tmp_path / name, num_frames=20, codec=name[:-4], pix_fmt=pix_fmt, gop=1, options=options)
    assert read_video(path, num_frames=20, backend=backend).num_source_frames == 20
    put_noise(path, packet=10)
    with pytest.raises(VideoReadError, match="pictures are damaged"):
        read_video(path, num_frames=20, backend=backend)


@pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")
def test_what_decord_complains_of_comes_with_a_warning(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "clip.avi", codec="mpeg4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_video(path, num_frames=4, backend="decord")
    put_noise(path, packet=13)  # which has no keyframe
    with pytest.warns(DamagedVideoWarning, match=r"clip\.avi: decord reads it, but reports"):
        read_video(path, num_frames=4, backend="decord")


def test_ffmpegs_log_is_left_as_it_was(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    test_path = intact(folder, "h264.mkv")
    read_video(test_path, num_frames=2)
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts"])
def test_a_transport_stream_cut_within_a_packet(name: str, folder: Path, tmp_path: Path) -> None:
    data = intact(folder, name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2 // 188 * 188 + 100])
    with pytest.raises(VideoReadError, match="cut short"):
        read_video(tmp_path / name, num_frames=2)


@pytest.mark.parametrize("name", ["h264.ts", "mpeg2.ts"])
def test_joined_transport_streams(name: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(2 * intact(folder, name).read_bytes())
    read = read_video(path, num_frames=2 * NUM_FRAMES)
    numbers = [clips.read_number(frame) for frame in read.frames.numpy()]
    assert numbers == 2 * list(range(NUM_FRAMES))
    assert np.all(np.diff(read.timestamps_s) > 0)
    assert read.duration_s == pytest.approx(2 * NUM_FRAMES / 25)


LESS_USUAL = {
    "clip.ivf": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "clip.nut": {"codec": "mpeg4"},
    "clip.mxf": {"codec": "mpeg2video"},
    "clip.ogv": {"codec": "libtheora"},
    "clip.y4m": {"codec": "wrapped_avframe"},
}


@pytest.mark.parametrize("name", LESS_USUAL)
def test_less_usual_containers(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("y4m"):
        write_y4m(path, 12)
    elif LESS_USUAL[name]["codec"] in av.codecs_available:
        clips.write_clip(path, num_frames=12, b_frames=0, **LESS_USUAL[name])
    else:
        pytest.skip("this PyAV has no encoder for it")
    read = read_video(path, num_frames=12)
    assert [clips.read_number(frame) for frame in read.frames.numpy()] == list(range(12))
    np.testing.assert_allclose(read.timestamps_s, np.arange(12) / 25, atol=1e-3)


def write_y4m(path: Path, num_frames: int) -> None:
    frames = [av.VideoFrame.from_ndarray(clips.draw_frame(i, (160, 96)), format="rgb24") for i in range(num_frames)]
    data = [b"FRAME\n" + frame.to_ndarray(format="yuv420p").tobytes() for frame in frames]
    path.write_bytes(b"YUV4MPEG2 W160 H96 F25:1 C420jpeg\n" + b"".join(data))


def test_animated_gif(tmp_path: Path) -> None:
    path, size = tmp_path / "moving.gif", (64, 48)
    pictures = [Image.new("RGB", size, (25 * t, 0, 255 - 25 * t)) for t in range(10)]
    durations_ms = [100] * 5 + [300] * 5
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0)
    read = read_video(path, num_frames=10)
    np.testing.assert_array_equal(read.frames.numpy(), np.stack([np.array(p) for p in pictures]))
    np.testing.assert_allclose(read.timestamps_s, np.cumsum([0, *durations_ms[:-1]]) / 1000)
    assert read.duration_s == pytest.approx(2.0)


def test_gif_frames_that_change_a_part_keep_the_rest(tmp_path: Path) -> None:
    red, patch = Image.new("RGB", (40, 30), (255, 0, 0)), Image.new("RGB", (40, 30), (255, 0, 0))
    patch.paste((0, 0, 255), (10, 10, 20, 20))
    red.save(tmp_path / "part.gif", save_all=True, append_images=[patch], duration=100)
    frames = read_video(tmp_path / "part.gif", num_frames=2).frames
    assert frames[1, 15, 15].tolist() == [0, 0, 255]
    assert frames[1, 2, 2].tolist() == [255, 0, 0]


class TestLimits:
    def test_huge_frames(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=1)
            stream.width, stream.height, stream.pix_fmt = 8000, 8000, "gray"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((8000, 8000), np.uint8), format="gray")))
            container.mux(stream.encode())
        with pytest.raises(VideoReadError, match=r"8000 x 8000 = 64000000 pixels, at most 40000000.*max_frame_pixels"):
            read_video(path, num_frames=1)

    @pytest.mark.parametrize("backend", ["auto", "decord", "torchcodec"])
    def test_many_frames(self, backend: str, folder: Path) -> None:
        path, size = intact(folder, "h264.mkv"), 160 * 96 * 3
        assert len(read_video(path, num_frames=4, max_bytes=4 * size).frames) == 4
        with pytest.raises(VideoReadError, match=f"take {5 * size} bytes, at most {4 * size} fit; raise max_bytes"):
            read_video(path, num_frames=5, max_bytes=4 * size, backend=backend)
        with pytest.raises(VideoReadError, match="max_bytes"):
            read_video(path, num_frames=10**9, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "decord", "torchcodec"])
@pytest.mark.parametrize("name", ["a.sdp", "a.mpd", "a.m3u8", "a.ffconcat", "a.mp4"])
def test_nothing_is_opened_but_the_file(name: str, backend: str, tmp_path: Path, folder: Path) -> None:
    target = intact(folder, "h264.ts").as_uri()
    text = {
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "a.mpd": f'<?xml version="1.0"?><MPD type="static"><BaseURL>{target}</BaseURL></MPD>',
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{target}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "a.mp4": f"#EXTM3U\n#EXTINF:1.6,\n{target}\n",
    }[name]
    for tail in (b"", b"\n#\0"):  # with a byte that makes it no text
        (tmp_path / name).write_bytes(text.encode() + tail)
        with pytest.raises(VideoReadError, match=r"text|no known kind"):
            read_video(tmp_path / name, num_frames=1, backend=backend)
