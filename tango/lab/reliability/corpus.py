"""A corpus of sound video files in many containers, codecs and layouts, made with PyAV alone.

Files that this build of FFmpeg cannot write are listed as not made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

_MS = Fraction(1, 1000)
UNEVEN_MS = tuple(40 * i + (300 if i > 10 else 0) + 9 * (i % 3) for i in range(40))
_OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
# Options that silence encoder libraries, whose messages do not pass through FFmpeg's log; and quick presets.
_QUIET = {
    "libx265": {"x265-params": "log-level=none", "preset": "ultrafast"},
    "libsvtav1": {"preset": "12"},
    "libvpx": {"cpu-used": "8", "deadline": "realtime"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How one file is made: encoded as `codec` and the next fields say, or derived from another file by `derive`."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    num_frames: int = 40
    size: tuple[int, int] = (160, 96)
    gop: int = 12
    b_frames: int = 2
    pts_ms: Sequence[int] | None = None  # None: 25 frames a second
    options: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)
    format: str | None = None  # None: that of the name's ending
    aspect: Fraction | None = None
    source: str = ""
    derive: Callable[[Path, Path], None] | None = None
    # Number of frames that a player shows; None: all; 0: as many as a decoder that starts at the beginning shows.
    shown: int | None = None
    upright: Callable[[np.ndarray], np.ndarray] | None = None  # from coded pixels to those that a player shows


def draw_frame(number: int, size: tuple[int, int]) -> np.ndarray:
    """Draw frame `number`, unlike any other: a moving gradient with a moving block, uint8 (h, w, 3)."""
    w, h = size
    y, x = np.mgrid[0:h, 0:w]
    frame = np.stack([(x * 2 + number * 5) % 256, (y * 2 + number * 3) % 256, (x + y + number * 7) % 256], axis=-1)
    left, top = number * 11 % max(1, w - 12), number * 7 % max(1, h - 12)
    frame[top : top + 12, left : left + 12] = number * 37 % 256
    return frame.astype(np.uint8)


def make(name: str, folder: Path) -> Path:
    """The file of this name in a folder; it is written unless it exists.

    Raises:
        LookupError: this build of FFmpeg has no such encoder or muxer, or refuses the combination.
    """
    import av

    path, entry = folder / name, CORPUS[name]
    if path.exists():
        return path
    source = make(entry.source, folder) if entry.source else None
    partial_path = folder / f"partial_{name}"
    try:
        if entry.derive is None:
            _encode(partial_path, entry)
        elif source is not None:
            entry.derive(source, partial_path)
    except (av.FFmpegError, ValueError, LookupError) as error:
        raise LookupError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return partial_path.rename(path)


def _encode(path: Path, entry: Entry) -> None:
    import av

    with av.open(str(path), "w", format=entry.format, options=entry.muxer) as container:
        stream = container.add_stream(entry.codec, rate=25)
        stream.width, stream.height = entry.size
        stream.pix_fmt = entry.pix_fmt
        context = stream.codec_context
        context.gop_size, context.thread_count = entry.gop, 1
        context.options = {**_QUIET.get(entry.codec, {}), **entry.options}
        if entry.aspect is not None:
            context.sample_aspect_ratio = entry.aspect
        if entry.codec in ("libx264", "mpeg4", "mpeg2video"):
            context.max_b_frames = entry.b_frames
        time_base = Fraction(1, 25)
        if entry.pts_ms is not None:
            context.time_base = time_base = _MS
        for i in range(entry.num_frames):
            frame = av.VideoFrame.from_ndarray(draw_frame(i, entry.size), format="rgb24")
            frame.pts, frame.time_base = (i if entry.pts_ms is None else entry.pts_ms[i]), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _cut(start_s: float, source: Path, target: Path) -> None:
    """Copy packets from the last keyframe before `start_s` on. In mp4, an edit list hides frames before `start_s`."""
    import av

    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        video = read.streams.video[0]
        copy = written.add_stream_from_template(video)
        shift = round(start_s / (video.time_base or _MS))
        read.seek(shift, stream=video)
        for packet in read.demux(video):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            written.mux(packet)


def _cut_end_too(source: Path, target: Path) -> None:
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = (600).to_bytes(4, "big")  # shown for 600 ms
    target.write_bytes(data)


def _matrix(matrix: tuple[int, int, int, int], source: Path, target: Path) -> None:
    """Write a display matrix as a phone does; (x, y) goes to (a x + c y, b x + d y) (ISO/IEC 14496-12, 8.3.2)."""
    a, b, c, d = matrix
    data, one = bytearray(source.read_bytes()), 1 << 16
    header = data.index(b"tkhd")
    at = header + (44 if data[header + 4] == 0 else 56)
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    target.write_bytes(data)


def _twice(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes() * 2)


def _turned(matrix: tuple[int, int, int, int], upright: Callable[[np.ndarray], np.ndarray]) -> Entry:
    return Entry(source="h264.mp4", derive=partial(_matrix, matrix), upright=upright)


_E = Entry
_CRC = {"level": "3", "slicecrc": "1"}  # without checksums, damage in FFV1 goes unnoticed
_HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}  # frames that are never shown
_INTRA: dict[str, Any] = {"gop": 1, "num_frames": 20}
CORPUS: dict[str, Entry] = {
    # containers
    "h264.mp4": _E(), "h264.mov": _E(), "h264.mkv": _E(), "h264.avi": _E(), "h264.ts": _E(), "h264.flv": _E(),
    "h264.m2ts": _E(format="mpegts", muxer={"mpegts_m2ts_mode": "1"}), "h264.m4v": _E(format="mp4"), "h264.3gp": _E(),
    "h264.nut": _E(), "h264.mxf": _E(), "h264.h264": _E(), "h264.wmv": _E(), "h264.f4v": _E(),
    "faststart.mp4": _E(muxer={"movflags": "faststart"}),
    "fragmented.mp4": _E(muxer={"movflags": "frag_keyframe+empty_moov"}), "no_duration.mkv": _E(muxer={"live": "1"}),
    "joined.ts": _E(source="h264.ts", derive=_twice, shown=80),
    # groups of pictures
    "one_frame.mp4": _E(num_frames=1), "two_frames.mkv": _E(num_frames=2), "all_keyframes.mp4": _E(gop=1, b_frames=0),
    "no_b_frames.mp4": _E(b_frames=0), "one_keyframe.mp4": _E(gop=250), "long_group.mkv": _E(gop=250, num_frames=300),
    "b_pyramid.mp4": _E(gop=40, b_frames=8, options={"x264-params": "b-pyramid=normal:b-adapt=0"}),
    "open_gop.mp4": _E(options=_OPEN_GOP), "open_gop.ts": _E(options=_OPEN_GOP),
    "open_gop.mkv": _E(options=_OPEN_GOP),
    # times
    "uneven.mp4": _E(pts_ms=UNEVEN_MS), "uneven.mkv": _E(pts_ms=UNEVEN_MS),
    "uneven.webm": _E(codec="libvpx-vp9", pts_ms=UNEVEN_MS),
    "pause.mp4": _E(pts_ms=[40 * i + 60_000 * (i > 19) for i in range(40)]),
    "late_start.ts": _E(pts_ms=[90_000 + 40 * i for i in range(40)]),
    "late_start.mkv": _E(pts_ms=[90_000 + 40 * i for i in range(40)]),
    "negative_start.mkv": _E(pts_ms=[40 * i - 1000 for i in range(40)], muxer={"avoid_negative_ts": "disabled"}),
    "edit_list.mp4": _E(source="h264.mp4", derive=partial(_cut, 0.3), shown=32),
    "edit_list.mov": _E(source="h264.mov", derive=partial(_cut, 0.3), shown=32),
    "edit_list_open_gop.mp4": _E(source="open_gop.mp4", derive=partial(_cut, 0.9), shown=0),
    "edit_list_both_ends.mp4": _E(source="edit_list.mp4", derive=_cut_end_too, shown=15),
    "open_start.mkv": _E(source="open_gop.mp4", derive=partial(_cut, 0.9), shown=0),
    "mid_group.ts": _E(source="open_gop.ts", derive=partial(_cut, 0.9), shown=0),
    # orientations
    "turned_90.mp4": _turned((0, 1, -1, 0), partial(np.rot90, k=-1)),
    "turned_180.mp4": _turned((-1, 0, 0, -1), partial(np.rot90, k=2)),
    "turned_270.mp4": _turned((0, -1, 1, 0), partial(np.rot90, k=1)),
    "mirrored.mp4": _turned((-1, 0, 0, 1), np.fliplr), "upside_down.mp4": _turned((1, 0, 0, -1), np.flipud),
    "transposed.mp4": _turned((0, 1, 1, 0), partial(np.transpose, axes=(1, 0, 2))),
    # pixels
    "10_bit.mp4": _E(pix_fmt="yuv420p10le"), "422.mp4": _E(pix_fmt="yuv422p"), "444.mp4": _E(pix_fmt="yuv444p"),
    "grey.mp4": _E(pix_fmt="gray"), "odd_size.mp4": _E(pix_fmt="yuv444p", size=(161, 97)),
    "odd_size.webm": _E(codec="libvpx-vp9", size=(161, 97)), "tiny.mp4": _E(size=(16, 16)),
    "wide.mkv": _E(size=(640, 32)), "anamorphic.mp4": _E(aspect=Fraction(4, 3)),
    "interlaced.mp4": _E(options={"x264-params": "interlaced=1"}),
    "interlaced.mpg": _E(codec="mpeg2video", options={"flags": "+ildct+ilme"}),
    "rgb.mkv": _E(codec="libx264rgb", pix_fmt="rgb24"),
    # codecs
    "hevc.mp4": _E(codec="libx265"), "hevc.mkv": _E(codec="libx265"), "hevc.ts": _E(codec="libx265"),
    "hevc.hevc": _E(codec="libx265"), "hevc_10_bit.mp4": _E(codec="libx265", pix_fmt="yuv420p10le"),
    "vp8.webm": _E(codec="libvpx"), "vp8.mkv": _E(codec="libvpx"), "vp8.ivf": _E(codec="libvpx"),
    "vp8_hidden_frames.webm": _E(codec="libvpx", options=_HIDDEN), "vp9.webm": _E(codec="libvpx-vp9"),
    "vp9.mp4": _E(codec="libvpx-vp9"), "vp9.ivf": _E(codec="libvpx-vp9"),
    "vp9_hidden_frames.webm": _E(codec="libvpx-vp9", options=_HIDDEN), "av1.mp4": _E(codec="libsvtav1"),
    "av1.webm": _E(codec="libsvtav1"), "av1.mkv": _E(codec="libsvtav1"), "av1.ivf": _E(codec="libsvtav1"),
    "mpeg1.mpg": _E(codec="mpeg1video"), "mpeg2.mpg": _E(codec="mpeg2video"), "mpeg2.ts": _E(codec="mpeg2video"),
    "mpeg2.vob": _E(codec="mpeg2video"), "mpeg2.mxf": _E(codec="mpeg2video"), "mpeg2.m2v": _E(codec="mpeg2video"),
    "mpeg4.avi": _E(codec="mpeg4"), "mpeg4.mp4": _E(codec="mpeg4"), "mpeg4.mkv": _E(codec="mpeg4"),
    "h263.3gp": _E(codec="h263", size=(176, 144)), "flv1.flv": _E(codec="flv"), "msmpeg4.avi": _E(codec="msmpeg4"),
    "wmv2.wmv": _E(codec="wmv2"), "wmv1.asf": _E(codec="wmv1"), "svq1.mov": _E(codec="svq1", pix_fmt="yuv410p"),
    "prores.mov": _E(codec="prores_ks", pix_fmt="yuv422p10le", **_INTRA),
    "prores_4444.mov": _E(codec="prores_ks", pix_fmt="yuv444p10le", **_INTRA),
    "dnxhd.mov": _E(codec="dnxhd", pix_fmt="yuv422p", size=(1280, 720), num_frames=6, options={"b": "90M"}),
    "ffv1.mkv": _E(codec="ffv1", options=_CRC, **_INTRA), "ffv1.avi": _E(codec="ffv1", options=_CRC, **_INTRA),
    "huffyuv.avi": _E(codec="huffyuv", pix_fmt="yuv422p", **_INTRA), "utvideo.avi": _E(codec="utvideo", **_INTRA),
    "mjpeg.avi": _E(codec="mjpeg", pix_fmt="yuvj420p", **_INTRA),
    "mjpeg.mov": _E(codec="mjpeg", pix_fmt="yuvj420p", **_INTRA),
    "png.mov": _E(codec="png", pix_fmt="rgb24", **_INTRA),
    "qtrle.mov": _E(codec="qtrle", pix_fmt="rgb24", num_frames=20),
    "cinepak.avi": _E(codec="cinepak", pix_fmt="rgb24", num_frames=6),
    "jpeg2000.mov": _E(codec="jpeg2000", num_frames=6), "raw.avi": _E(codec="rawvideo", **_INTRA),
    "raw.nut": _E(codec="rawvideo", **_INTRA), "raw.y4m": _E(codec="wrapped_avframe", **_INTRA),
    "theora.ogv": _E(codec="libtheora"), "vc2.mkv": _E(codec="vc2", pix_fmt="yuv422p", num_frames=6),
    "moving.gif": _E(codec="gif", pix_fmt="rgb8", num_frames=20),
}  # fmt: skip
