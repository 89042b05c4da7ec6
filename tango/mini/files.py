"""Clips as video files: lossless H.264 in mp4, with the clip's irregular frame times.

The frames of a lossy encoder depend on its version, on the CPU and, with x264 on some CPUs, on chance. A lossless
encoder may choose other bytes, but every decoder makes the same pixels of them. The only loss is the conversion to
Y'CbCr at half the colour resolution, which is done here in whole numbers.
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tango.errors import TangoError
from tango.files import write_bytes
from tango.mini.scenes import SIZE, Clip, render_frame

# BT.601 with limited range, in units of 1 / 65536: as the stream's tags say, and as readers assume that ignore tags.
_TO_YUV = np.array([[16829, 33039, 6416], [-9714, -19071, 28784], [28784, -24103, -4681]], np.int32)
_TO_RGB = np.array([[76309, 0, 104597], [76309, -25675, -53279], [76309, 132201, 0]], np.int32)
_OPTIONS = {"qp": "0", "preset": "veryfast", "x264-params": "colormatrix=smpte170m:range=tv"}


def to_yuv(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert RGB frames (T, H, W, 3) to Y, Cb and Cr below each other, (T, 3 H / 2, W), the last two at half size.

    H must be a multiple of 4, W of 2.

    Example:
        >>> to_yuv(np.zeros((1, 4, 4, 3), np.uint8))[0, :, 0]  # black
        array([ 16,  16,  16,  16, 128, 128], dtype=uint8)
    """
    T, H, W, _ = frames.shape
    rgb = frames.astype(np.int32)
    luma = (rgb @ _TO_YUV[0] + (16 << 16) + (1 << 15)) >> 16
    of_four = rgb.reshape(T, H // 2, 2, W // 2, 2, 3).sum((2, 4))
    chroma = (of_four @ _TO_YUV[1:].T + (128 << 18) + (1 << 17)) >> 18  # (T, H / 2, W / 2, 2)
    planes = [luma, *(chroma[..., i].reshape(T, H // 4, W) for i in range(2))]
    return np.concatenate(planes, axis=1).astype(np.uint8)


def to_rgb(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Invert `to_yuv`: (T, 3 H / 2, W) -> (T, H, W, 3)."""
    T, rows, W = planes.shape
    H = 2 * rows // 3
    luma, small = planes[:, :H, :, None].astype(np.int32) - 16, planes[:, H:].astype(np.int32) - 128
    chroma = np.moveaxis(small.reshape(T, 2, H // 2, W // 2), 1, -1).repeat(2, axis=1).repeat(2, axis=2)
    rgb = (np.concatenate([luma, chroma], axis=-1) @ _TO_RGB.T + (1 << 15)) >> 16
    return rgb.clip(0, 255).astype(np.uint8)


def as_read(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) as a reader gets them from a file, up to its rounding; the same on every machine."""
    return to_rgb(to_yuv(frames))


def _encoded(frames: NDArray[np.uint8], times_s: NDArray[np.float64]) -> bytes:
    import av

    if "libx264" not in av.codecs_available:
        raise TangoError("this PyAV was built without x264, which writes the clips; install PyAV's own: pip install av")
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options=_OPTIONS)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for planes, time_s in zip(to_yuv(frames), times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = round(1000 * time_s), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_clip(path: Path, clip: Clip, *, blank: bool = False) -> None:
    """Render a clip, or grey frames in its place, and write it as mp4; the file appears when it is complete.

    Raises:
        TangoError: this PyAV has no x264 encoder.
    """
    if blank:
        frames = np.full((clip.num_frames, SIZE, SIZE, 3), 127, dtype=np.uint8)
    else:
        frames = np.stack([render_frame(clip, k)[0] for k in range(clip.num_frames)])
    write_bytes(path, _encoded(frames, clip.times_s))
