"""The forms that a video may come in: a file, its address or bytes, a folder of frames, frames in memory."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tango.errors import OptionError, VideoReadError
from tango.video.addresses import is_stream, local_path
from tango.video.images import ENDINGS, Sizes, check_frames, frame_pixels, stack_frames
from tango.video.sampling import one_line, sample_indices

if TYPE_CHECKING:  # at run time torch loads on first use
    from torch import Tensor

    from tango.containers import Video

# Rate of a folder of frames: MVBench's episodic reasoning (TVQA) stores three frames a second, and both toolkits count
# them so (lmms-eval 0.7.3, models/simple/llava_vid.py; ms-vlmeval 0.0.20, dataset/mvbench.py).
FOLDER_FPS = 3.0
_FORMS = "a path, a file:// address, bytes, a binary file, a folder or a list of frames, or uint8 frames (T, h, w, 3)"


def read_source(
    source: object,
    *,
    num_frames: int,
    fps: float | None,
    timeout_s: float,
    sizes: Sizes,
    read_file: Callable[[str], Video],
) -> Video:
    """Read a video that is not given as the path of a file; see `tango.read_video`.

    Args:
        read_file: reads `num_frames` frames of a video file.
    """
    if isinstance(source, (str, os.PathLike)):
        path = name = os.fsdecode(source)
        if not os.path.isdir(path):
            path = local_path(path)
        if os.path.isdir(path):
            return _read_folder(path, name, num_frames, FOLDER_FPS if fps is None else fps, sizes)
        refuse_fps(fps)
        with _named(name, path):
            return read_file(path)
    if is_stream(source):
        refuse_fps(fps)
        return _read_stream(source, timeout_s, read_file)
    if (video := as_video(source)) is not None:
        chosen = sample_indices(len(video.frames), num_frames)
        indices = tuple(video.frame_indices[i] for i in chosen)
        return replace(
            video, frames=video.frames[chosen], timestamps_s=video.timestamps_s[chosen], frame_indices=indices
        )
    frames, taken, count = take_frames(source, num_frames, sizes)
    return frames_video(frames, taken, count, FOLDER_FPS if fps is None else fps, label_of(source))


def as_video(source: object) -> Video | None:
    """The source if it is a `Video` already, else None."""
    from tango.containers import Video

    return source if isinstance(source, Video) else None


def take_frames(source: object, num_frames: int | None, sizes: Sizes | None = None) -> tuple[Tensor, np.ndarray, int]:
    """Take frames from an array or a list: frames (T, h, w, 3) uint8, their indices, and how many there are in all.

    Raises:
        VideoReadError: the source is neither, or one of its frames is not like the others.
    """
    import torch

    label = label_of(source)
    if isinstance(source, (torch.Tensor, np.ndarray)):
        shape, dtype = tuple(source.shape), str(source.dtype).removeprefix("torch.")
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape or dtype != "uint8":
            way_out = "; move the channels to the end" if len(shape) == 4 and shape[1] == 3 else "; convert it"
            raise VideoReadError(
                label, f"a video must be uint8 frames (T, h, w, 3), got {dtype} of shape {shape}{way_out}"
            )
        indices = sample_indices(len(source), len(source) if num_frames is None else num_frames)
        frames = torch.as_tensor(source).cpu()
        return frames if num_frames is None else frames[indices], indices, len(frames)
    if not isinstance(source, (list, tuple)):
        raise VideoReadError(label, f"it is of type {type(source).__name__}; expected {_FORMS}; convert it")
    if not source:
        raise VideoReadError(label, "the list is empty, expected frames; name a video or its frames")
    sizes = sizes or Sizes()
    check_frames(label, source, sizes)
    indices = sample_indices(len(source), len(source) if num_frames is None else num_frames)
    pixels = stack_frames(label, lambda i: frame_pixels(label, i, source[i], sizes=sizes, count=len(indices)), indices)
    return torch.from_numpy(pixels), indices, len(source)


def refuse_fps(fps: float | None) -> None:
    """Raise OptionError if `fps` is given, for a file, which has its own."""
    if fps is not None:
        raise OptionError(
            f"fps={fps} is for frames without times (a folder, a list, an array); a video file has its own. "
            "num_frames says how many of its frames are taken"
        )


@contextmanager
def _named(name: str, path: str) -> Iterator[None]:
    """While entered, errors about the file at `path` call it `name`, as the user did."""
    try:
        yield
    except VideoReadError as error:
        if error.path != path:
            raise
        raise VideoReadError(name, error.reason.replace(path, name)) from error


def _read_folder(path: str, name: str, num_frames: int, fps: float, sizes: Sizes) -> Video:
    import torch

    try:
        entries = [entry for entry in os.listdir(path) if not entry.startswith(".")]
    except OSError as error:
        raise VideoReadError(name, f"the folder cannot be opened ({one_line(error)}); check its rights") from error
    files = sorted((e for e in entries if e.lower().endswith(ENDINGS)), key=_natural)
    if not files:
        holds = "is empty" if not entries else f"holds no images but, for example, {sorted(entries)[0]!r}"
        raise VideoReadError(name, f"it is a directory, and it {holds}; name a video file or a folder of frames")
    indices = sample_indices(len(files), num_frames)

    def frame(i: int) -> np.ndarray:
        return frame_pixels(name, i, os.path.join(path, files[i]), sizes=sizes, count=num_frames)

    pixels = stack_frames(name, frame, indices)
    return frames_video(torch.from_numpy(pixels), indices, len(files), fps, path)


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key by which frame_2 comes before frame_10."""
    pieces = re.split("([0-9]+)", name)
    return [(p.isdecimal(), int(p) if p.isdecimal() else 0, "" if p.isdecimal() else p) for p in pieces], name


def _read_stream(
    source: bytes | bytearray | memoryview | BinaryIO, timeout_s: float, read_file: Callable[[str], Video]
) -> Video:
    """Read the contents of a video through a temporary file, in which every backend can seek."""
    label, started = label_of(source), time.monotonic()
    if isinstance(source, (bytes, bytearray, memoryview)) and len(source) < 4096 and os.path.exists(bytes(source)):
        reason = "bytes are the contents of a video, and these are the name of a file"
        raise VideoReadError(label, f"{reason}; use os.fsdecode(name)")
    with tempfile.NamedTemporaryFile(prefix="tango-") as file:

        def write(chunk: bytes | bytearray) -> None:
            if time.monotonic() - started > timeout_s:
                raise VideoReadError(label, "reading took longer than timeout_s; raise it, or cut the video")
            file.write(chunk)

        try:
            if isinstance(source, memoryview):
                source = source.tobytes()
            write(source) if isinstance(source, (bytes, bytearray)) else _each_chunk(source, write)
            file.flush()
        except VideoReadError:
            raise
        except TypeError as error:
            raise VideoReadError(label, "it is opened as text, expected a binary file; use mode 'rb'") from error
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            reason = f"it cannot be copied to {tempfile.gettempdir()} ({one_line(error)})"
            raise VideoReadError(label, f"{reason}; check both, or name a file") from error
        with _named(label, file.name):
            return replace(read_file(file.name), path=label)


def _each_chunk(source: BinaryIO, use: Callable[[bytes], None]) -> None:
    """Read a binary file from its beginning, if it can seek, and leave its position where it was."""
    position = source.tell() if getattr(source, "seekable", bool)() else None
    try:
        if position is not None:
            source.seek(0)
        while chunk := source.read(1 << 20):
            use(chunk)
    finally:
        if position is not None:
            source.seek(position)


def label_of(source: object) -> str:
    """The name that errors give to a source without a path."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return os.fsdecode(name) if isinstance(name, (str, bytes)) else "<file object>"
    if isinstance(source, (list, tuple)):
        return f"<list of {len(source)} frames>"
    return f"<{type(source).__name__}>"


def frames_video(frames: Tensor, indices: Sequence[int] | np.ndarray, count: int, fps: float, path: str) -> Video:
    """A `Video` of frames that are shown at a constant rate; `count` is the number of frames in the source."""
    import torch

    from tango.containers import Video

    if not (isinstance(fps, (int, float)) and 0 < fps < float("inf")):
        raise OptionError(f"fps must be a positive number of frames a second, got {fps!r}")
    taken = tuple(int(i) for i in indices)
    return Video(
        frames=frames,
        timestamps_s=torch.tensor(taken, dtype=torch.float64) / fps,
        frame_indices=taken,
        num_source_frames=count,
        duration_s=count / fps,
        fps=float(fps),
        path=path,
        backend="images",
    )
