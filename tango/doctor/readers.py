"""Checks of the optional video readers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from tango.doctor import Finding, clip
from tango.errors import TangoError


def _read(name: str) -> Finding:
    from tango.video.reading import read_video

    if find_spec(name) is None:
        return Finding(name, "note", "not installed; PyAV reads the videos")
    try:
        frames = read_video(clip.FILE, num_frames=clip.NUM_FRAMES, backend=name).frames
    except TangoError as error:
        return Finding(name, "failed", str(error), f"reinstall {name}, or leave --video-backend at auto")
    try:
        reader = f"{name} {version(name)}"
    except PackageNotFoundError:
        reader = name
    return clip.compare(name, reader, frames.numpy())


def decord() -> Finding:
    """decord, if installed, reads the clip correctly."""
    return _read("decord")


def torchcodec() -> Finding:
    """torchcodec, if installed, reads the clip correctly."""
    return _read("torchcodec")
