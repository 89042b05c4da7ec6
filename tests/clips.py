"""Writers of real video files for the tests: every frame carries its own number, readable after lossy coding.

An encoder may code the same frames otherwise the next time (x264 does on some processors): compare what is read from
one file, never the files or pixels of two.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
UNEVEN_MS = [40 * i + (300 if i > 10 else 0) + 9 * (i % 3) for i in range(40)]
ENCODED: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "plain.mkv": {},
    "plain.ts": {},
    "plain.flv": {},
    "with_audio.mp4": {"audio": True},
    "one_frame.mp4": {"num_frames": 1},
    "one_keyframe.mp4": {"gop": 250},
    "all_keyframes.mp4": {"gop": 1, "b_frames": 0},
    "uneven.mp4": {"pts_ms": UNEVEN_MS},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "index_first.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc_10_bit.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "av1.mp4": {"codec": "libsvtav1"},
    "b_frames.avi": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "raw.h264": {},
    "mpeg2.mpg": {"codec": "mpeg2video"},
}
# name -> (source, seconds cut off, number of the first frame shown)
CUT = {
    "edit_list.mp4": ("plain.mp4", 0.3, 8),
    "edit_list_open_gop.mp4": ("open_gop.mp4", 0.9, 24),
    "open_start.mkv": ("open_gop.mp4", 0.9, 24),
    "mid_group.ts": ("open_gop.ts", 0.9, 36),
}

_NUM_BITS = 10
_TICKS_PER_S = 1000
# Chatter of the encoder libraries themselves, which does not pass through FFmpeg's log.
_QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "12"}}


def draw_frame(number: int, size: tuple[int, int]) -> np.ndarray:
    """Draw frame `number`: its binary code across the top, a moving colour gradient below. uint8, (h, w, 3)."""
    w, h = size
    y, x = np.mgrid[0:h, 0:w]
    frame = np.stack([(x * 2 + number * 5) % 256, (y * 2 + number * 3) % 256, (x + y + number * 7) % 256], axis=-1)
    bits = [(number >> b) & 1 for b in range(_NUM_BITS)]
    frame[: h // 4] = np.repeat(bits, -(-w // _NUM_BITS))[:w, None] * 219 + 16
    return frame.astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """Read the frame number back from decoded (h, w, 3) pixels."""
    h, w, _ = frame.shape
    step = -(-w // _NUM_BITS)
    blocks = [frame[h // 16 : h // 6, b * step + step // 4 : (b + 1) * step - step // 4] for b in range(_NUM_BITS)]
    return sum((1 << b) for b, block in enumerate(blocks) if block.mean() > 127)


def write_clip(
    path: Path,
    *,
    num_frames: int = 40,
    fps: int = 25,
    size: tuple[int, int] = (160, 96),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    pts_ms: Sequence[int] | None = None,
    audio: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode `num_frames` numbered frames into the container that the file's ending names.

    `pts_ms` gives explicit presentation times (variable frame rate); otherwise frames follow at `fps`.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.gop_size = gop
        context.options = {**_QUIET.get(codec, {}), **(options or {})}
        context.thread_count = 1
        if codec in ("libx264", "mpeg4", "mpeg2video"):
            context.max_b_frames = b_frames
        time_base = Fraction(1, fps)
        if pts_ms is not None:
            time_base = Fraction(1, _TICKS_PER_S)
            context.time_base = time_base
        sound = container.add_stream("aac", rate=16000) if audio else None
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw_frame(i, size), format="rgb24")
            frame.pts, frame.time_base = (i if pts_ms is None else pts_ms[i]), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(_encode_tone(sound, duration_s=num_frames / fps))
    return path


def write_audio(path: Path, *, duration_s: float = 1.0) -> Path:
    """Write a file that holds a tone and no picture."""
    with av.open(str(path), "w") as container:
        container.mux(_encode_tone(container.add_stream("aac", rate=16000), duration_s=duration_s))
    return path


def _encode_tone(stream: av.AudioStream, *, duration_s: float) -> Iterable[av.Packet]:
    rate, block = 16000, 1024
    packets = []
    for start in range(0, int(duration_s * rate), block):
        wave = np.sin(np.arange(start, start + block) * 0.17).astype(np.float32) * 0.2
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def cut_without_recoding(source: Path, target: Path, *, start_s: float) -> Path:
    """Copy packets from the keyframe before `start_s` on, times shifted by `start_s`.

    The frames before `start_s` are needed to decode the rest but must not be shown: the mp4 muxer hides them with an
    edit list, as `ffmpeg -ss START -c copy` does.
    """
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        video = read.streams.video[0]
        copy = written.add_stream_from_template(video)
        shift = round(start_s / video.time_base)
        read.seek(shift, stream=video)
        for packet in read.demux(video):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            written.mux(packet)
    return target


def rotate_display(path: Path, *, clockwise_degrees: int) -> Path:
    """Write a rotation into the mp4 file's track header in place, as a phone does; the coded pixels stay.

    The matrix maps a coded point (x, y) to (a x + c y, b x + d y), y pointing down (ISO/IEC 14496-12, 8.3.2).
    """
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise_degrees]
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    matrix = header + (44 if data[header + 4] == 0 else 56)
    one = 1 << 16
    data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def hide_vp8_frame(source: Path, target: Path, *, number: int) -> Path:
    """Copy a VP8 clip and mark one frame as never shown, like the references that encoders put in between."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        copy = written.add_stream_from_template(read.streams.video[0])
        for i, packet in enumerate(p for p in read.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            if i == number:
                data[0] &= ~16  # the "show frame" bit
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            written.mux(changed)
    return target


def decode_everything(path: Path) -> list[np.ndarray]:
    """Decode all frames in order, the plainest way there is."""
    with av.open(str(path)) as container:
        # How colour is interpolated makes a difference beyond 8-bit 4:2:0 only; ffmpeg's own way.
        return [f.to_ndarray(format="rgb24", interpolation="BICUBIC") for f in container.decode(video=0)]


def write_named(name: str, folder: Path) -> Path:
    """Write the clip that `ENCODED` or `CUT` describes, unless it is there.

    Raises:
        LookupError: this PyAV has no encoder for it.
    """
    path = folder / name
    if path.exists():
        return path
    if name in CUT:
        source, start_s, _ = CUT[name]
        return cut_without_recoding(write_named(source, folder), path, start_s=start_s)
    codec = ENCODED[name].get("codec", "libx264")
    if codec not in av.codecs_available:
        raise LookupError(f"this PyAV cannot encode {codec}")
    return write_clip(path, **ENCODED[name])


def damage(data: bytes, rng: random.Random) -> bytes:
    """Truncate, flip bits in the coded pictures, take a piece out, or append noise, which does no harm."""
    kind = rng.choice(["truncate", "flip", "cut", "append"])
    if kind == "append":
        return data + rng.randbytes(500)
    if kind == "truncate":
        return data[: rng.randrange(len(data))]
    changed, start = bytearray(data), data.find(b"mdat") + 100
    if kind == "flip":
        for _ in range(rng.choice([1, 10, 300])):
            changed[rng.randrange(start, start + len(data) // 2)] ^= 1 << rng.randrange(8)
    else:
        at = rng.randrange(start, len(data) - 1000)
        del changed[at : at + rng.choice([1, 100, 1000])]
    return bytes(changed)
