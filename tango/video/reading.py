"""Read a video: uniformly sampled frames, with the time at which each is shown."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from tango.errors import UnknownNameError
from tango.video.addresses import has_times, is_file
from tango.video.backends import BACKENDS
from tango.video.files import check_file
from tango.video.images import Sizes
from tango.video.source import Limits
from tango.video.sources import as_video, frames_video, label_of, read_source, refuse_fps, take_frames

if TYPE_CHECKING:  # at run time torch and PyAV load on first use
    from torch import Tensor

    from tango.containers import Video


def read_video(
    video: object,
    *,
    num_frames: int,
    backend: str = "auto",
    timeout_s: float = 120.0,
    max_frame_pixels: int = 40_000_000,
    max_bytes: int = 4 << 30,
    fps: float | None = None,
) -> Video:
    """Read `num_frames` frames, spread evenly over the video from its first displayed frame to its last.

    The video may be a path or `file://` address; the contents of a file, as bytes or a binary file object (which is
    read from its beginning if it can seek, and is left where it was, not closed); a folder of frames; or frames: a list
    of Pillow images, of paths of images or of uint8 arrays (h, w, 3), or an array or tensor (T, h, w, 3). The frames of
    a folder are its images, but no hidden ones, in natural order (frame_2 before frame_10); only sampled ones are read.

    Frames are upright (rotation and mirroring stored in the file are applied) and exactly those that a decoder which
    starts at the beginning shows. Colours are ffmpeg's: the file's tags decide on matrix and range, files without tags
    count as BT.601 with limited range, and HDR video (PQ, HLG) is converted without tone mapping.

    A frame that cannot be read is an error, never left out or replaced; frames repeat only if the video has fewer than
    `num_frames`. A file is always refused if a frame or a piece of the container is missing or marked as damaged. If
    FFmpeg only complains and returns all frames, they come with a DamagedVideoWarning. What no sampled frame depends on
    is not decoded, so damage there goes unnoticed. Streams that state no length (MPEG-TS, FLV, raw) end where the file
    ends, and wrong pixels that a damaged file decodes to without any complaint cannot be told from true ones.

    Args:
        backend: "auto" and "pyav" are the same exact reader. "torchcodec" and "decord" are used only when named. decord
            ignores edit lists: on clips that were cut without recoding it returns other frames, as the paper's release
            does. Where it would return other frames for another reason (MPEG-TS, negative times), it is refused. Both
            interpolate colour in their own way, so pixels at sharp edges differ, and both refuse mirrored video.
        timeout_s: give up after this long. decord is killed then; torchcodec cannot be interrupted.
        max_frame_pixels: refuse larger frames before they are decoded; 8K video (7680 x 4320) is below the default.
        max_bytes: refuse a video whose sampled frames, at 3 bytes a pixel, would take more memory than this.
        fps: frames a second of a folder or of frames, which have no times; None: 3, as MVBench's folders have.

    Raises:
        VideoReadError: the video is missing, damaged or none, or the backend cannot be used.
        UnknownNameError: there is no such backend.
        OptionError: `fps` is not positive, or given for a file, which has its own.
        ValueError: `num_frames` is below 1.
    Source: the sampling is that of the paper's release (arXiv:2604.09547), which reads with decord.

    Example:
        >>> video = tango.read_video("clip.mp4", num_frames=8)
        >>> video.frames.shape, video.frames.dtype
        (torch.Size([8, 112, 112, 3]), torch.uint8)

    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    check_backend(backend)
    limits = Limits(timeout_s, time.monotonic() + timeout_s, max_frame_pixels, max_bytes)
    read_file = partial(_read_file, num_frames=num_frames, backend=backend, limits=limits)
    if is_file(video):
        refuse_fps(fps)
        return read_file(os.fsdecode(video))
    sizes = Sizes(max_frame_pixels, max_bytes)
    return read_source(video, num_frames=num_frames, fps=fps, timeout_s=timeout_s, sizes=sizes, read_file=read_file)


def load_video(
    source: object, *, num_frames: int | None, usual: int, backend: str = "auto", fps: float | None = None
) -> Video | Tensor:
    """Read a video in any form as a `Video`, or as a tensor of frames if it has no times.

    Args:
        num_frames: frames to sample; None: `usual` of a file or a folder, and all frames of an array or a list.
        fps: as in `tango.read_video`; None: arrays and lists remain without times.
    Raises:
        VideoReadError: the source cannot be read, or is no video.
    """
    if (video := as_video(source)) is not None:
        return video
    if has_times(source):
        return read_video(source, num_frames=num_frames or usual, backend=backend, fps=fps)
    frames, indices, count = take_frames(source, num_frames)
    return frames if fps is None else frames_video(frames, indices, count, fps, label_of(source))


def _read_file(path: str, num_frames: int, backend: str, limits: Limits) -> Video:
    check_file(path)
    clip = BACKENDS[backend](path, num_frames, limits)

    import torch

    from tango.containers import Video

    return Video(
        frames=torch.from_numpy(clip.frames),
        timestamps_s=torch.from_numpy(clip.timestamps_s),
        frame_indices=tuple(clip.indices.tolist()),
        num_source_frames=clip.num_source_frames,
        duration_s=clip.duration_s,
        fps=clip.num_source_frames / clip.duration_s if clip.duration_s > 0 else 0.0,
        path=path,
        backend="pyav" if backend == "auto" else backend,
    )


def check_backend(name: str) -> None:
    """Raise UnknownNameError unless `read_video` has a backend of this name."""
    if name not in BACKENDS:
        raise UnknownNameError("video backend", name, BACKENDS)
