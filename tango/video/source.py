"""An open video file: which containers FFmpeg may read, and how."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tango.errors import VideoReadError
from tango.sampling import one_line

if TYPE_CHECKING:  # at run time PyAV loads on first use
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Only real video containers: no playlists, image sequences, text art or devices, which FFmpeg would open as "video".
_CONTAINERS = "asf,avi,flv,h264,hevc,m4v,matroska,mov,mpeg,mpegts,mpegvideo"


class Clip(NamedTuple):
    """What a backend delivers: a Video before it becomes tensors."""

    frames: np.ndarray
    indices: np.ndarray
    timestamps_s: np.ndarray
    num_source_frames: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """An open file and its main video stream."""

    path: str
    container: InputContainer
    stream: VideoStream
    deadline: float  # on the monotonic clock

    def packets(self) -> Iterator[av.Packet]:
        """Yield the stream's packets and last the empty one that flushes the decoder."""
        for packet in self.container.demux(self.stream):
            if time.monotonic() > self.deadline:
                raise VideoReadError(self.path, "reading took longer than timeout_s; raise it, or cut the video")
            yield packet


def import_av(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoReadError(path, f"PyAV does not load ({one_line(error)}); run: pip install av") from error
    return av


@contextmanager
def opened(path: str, deadline: float, **options: str) -> Iterator[Source]:
    """Open a file and its main video stream; errors of FFmpeg inside the block become VideoReadError."""
    av = import_av(path)
    # "file:" and the lists keep FFmpeg from reading the name as an address and from following what the file points to.
    url = f"file:{os.path.abspath(path)}"
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", **options}
    # Before PyAV 19 a title that is not UTF-8 would be an error.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        with av.open(url, container_options=options, **lenient) as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # a cover picture
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
                raise VideoReadError(path, f"it has no readable video stream (only: {kinds}); name another file")
            if stream.codec_context is None:
                raise VideoReadError(path, "this FFmpeg has no decoder for its codec; convert it to H.264")
            stream.thread_type = "AUTO"
            yield Source(path=path, container=container, stream=stream, deadline=deadline)
    except av.FFmpegError as error:
        reason = f"it is damaged or no known kind of video ({error.strerror})"
        raise VideoReadError(path, f"{reason}; check that it plays, copy it again or convert it") from error
