"""The clip that comes with the checks, and the pixels that every reader must return for it."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from tango.doctor import DATA, Finding
from tango.mini.files import to_rgb

FILE = DATA / "clip.mp4"
NUM_FRAMES = 8
# SHA-256 of the clip's planes of Y, Cb and Cr, which every decoder must return exactly.
PLANES = "c5cb4f1eff4b7c7a08ad8560b4c514d35ed3674385b02d1fb4a332c94b872e5e"
TOLERANCE = 4  # of 255: each reader rounds the conversion to RGB in its own way
QUESTION, ANSWER = "which color is last", "cyan"


def decoded_planes() -> NDArray[np.uint8]:
    """Planes of all frames, (T, 3 H / 2, W), as PyAV decodes them."""
    import av

    with av.open(str(FILE)) as container:
        return np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])


def compare(name: str, reader: str, frames: NDArray[np.uint8]) -> Finding:
    """Compare the frames that a reader returned, (T, H, W, 3), with the known ones."""
    planes = decoded_planes()
    if hashlib.sha256(planes.tobytes()).hexdigest() != PLANES:
        detail = "FFmpeg's H.264 decoder in PyAV gives other pixels than it must, or the clip is damaged"
        return Finding(name, "failed", detail, "pip install --force-reinstall av tango-video")
    known = to_rgb(planes)
    if frames.shape != known.shape:
        detail = f"{reader} gives {tuple(frames.shape)}, expected {known.shape}"
        return Finding(name, "failed", detail, f"reinstall {reader}, or use another --video-backend")
    most = int(np.abs(np.asarray(frames, dtype=np.int16) - known).max())
    detail = f"{reader} reads the clip within {most} of 255"
    if most > TOLERANCE:
        detail = f"{reader} gives other colours: up to {most} of 255 off, at most {TOLERANCE} expected"
        return Finding(name, "failed", detail, f"reinstall {reader}, or use another --video-backend")
    return Finding(name, "ok", detail)
