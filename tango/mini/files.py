"""Clips as real video files: H.264 in mp4, with the clip's irregular frame times."""

from __future__ import annotations

import os
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from tango.mini.scenes import SIZE, Clip, render_frame

_QUALITY = {"crf": "18", "preset": "veryfast"}


def _encode(target: Any, frames: np.ndarray, times_s: np.ndarray) -> None:
    import av

    with av.open(target, "w", format="mp4") as container:
        has_x264 = "libx264" in av.codecs_available
        stream = container.add_stream("libx264" if has_x264 else "mpeg4", rate=30, options=_QUALITY if has_x264 else {})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for pixels, time_s in zip(frames, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_clip(path: Path, clip: Clip, *, blank: bool = False) -> None:
    """Render a clip, or grey frames in its place, and write it as mp4; the file appears only when it is complete."""
    if blank:
        frames = np.full((clip.num_frames, SIZE, SIZE, 3), 127, dtype=np.uint8)
    else:
        frames = np.stack([render_frame(clip, k)[0] for k in range(clip.num_frames)])
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        _encode(str(partial), frames, clip.times_s)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def through_codec(frames: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Frames (T, SIZE, SIZE, 3) as they look after encoding and decoding."""
    import av

    file = BytesIO()
    _encode(file, frames, times_s)
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
