"""From a decoded frame to the pixels that a player shows: upright RGB, in the colours that the file's tags mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import av

# Matrix of Y'CbCr (ITU-T H.273, table 4) -> the number of swscale's coefficients for it. Untagged files, and matrices
# that swscale lacks, count as BT.601, as in ffmpeg.
_BT709, _BT601 = 1, 5
_MATRICES = {1: _BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: 9, 10: 9}
_LIMITED, _FULL = 1, 2  # FFmpeg's numbers for a frame's range
_UPRIGHT_WITHIN_DEGREES = 1.0  # ffmpeg's own tolerance


class Converter:
    """Convert the frames of one video to upright RGB. An instance must not be shared by threads."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return uint8 pixels (h, w, 3).

        Raises:
            ValueError: the file says that its picture is tilted by less than a right angle.
        """
        rgb = self._reformatter.reformat(frame, format="rgb24", **_colours(frame)).to_ndarray()
        return _upright(rgb, *_display_matrix(frame))


def is_mirrored(frame: av.VideoFrame) -> bool:
    """Whether players mirror the picture, besides turning it."""
    a, b, c, d = _display_matrix(frame)
    return a * d - b * c < 0


def _display_matrix(frame: av.VideoFrame) -> tuple[float, ...]:
    """Return a, b, c, d: a coded (x, y) is shown at (a x + c y, b x + d y), y down."""
    if (data := frame.side_data.get("DISPLAYMATRIX")) is None:
        return 1.0, 0.0, 0.0, 1.0
    matrix = np.frombuffer(data, "=i4").tolist()
    return tuple(float(matrix[i]) for i in (0, 1, 3, 4))


def _colours(frame: av.VideoFrame) -> dict[str, Any]:
    """Options that tell swscale a frame's matrix and range; PyAV passes these on by itself only from version 17 on."""
    layout, tagged_range = frame.format, int(frame.color_range)
    is_grey = len(layout.components) < 3
    if layout.is_rgb or layout.has_palette or (is_grey and tagged_range != _LIMITED):
        return {}
    matrix = _MATRICES.get(int(frame.colorspace), _BT601)
    is_full = tagged_range == _FULL or layout.name.startswith("yuvj")
    return {
        "src_colorspace": matrix,
        "dst_colorspace": _BT709 if matrix == _BT601 else _BT601,  # PyAV 15 uses the source's only if the two differ
        "src_color_range": _FULL if is_full else _LIMITED,
        "dst_color_range": _FULL,
        "interpolation": "BICUBIC",  # of the subsampled colour planes; ffmpeg's own choice
    }


def _upright(pixels: np.ndarray, a: float, b: float, c: float, d: float) -> np.ndarray:
    """Turn and mirror pixels as the display matrix says."""
    if not math.hypot(a, c) * math.hypot(b, d):
        return pixels  # no matrix at all
    tilt = math.degrees(math.atan2(b, a)) % 90
    if _UPRIGHT_WITHIN_DEGREES < tilt < 90 - _UPRIGHT_WITHIN_DEGREES:
        raise ValueError(f"its picture is to be shown tilted by {tilt:.0f} degrees; convert it to an upright one")
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
