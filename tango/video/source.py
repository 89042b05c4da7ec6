"""An open video file: which containers FFmpeg may read, and how."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tango.errors import VideoReadError
from tango.video.ffmpeg_log import complaints
from tango.video.sampling import one_line

if TYPE_CHECKING:  # at run time PyAV loads on first use
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Only real video containers: no playlists, image sequences, text art or devices, which FFmpeg would open as "video".
_CONTAINERS = "asf,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,yuv4mpegpipe"
_ERROR = 16  # level of FFmpeg's log
_ABOUT_REFERENCES = r"[Rr]eference|mmco|ref with POC|co located POCs"  # of its decoders for H.264 and HEVC


class Clip(NamedTuple):
    """What a backend returns: the fields of a `Video`, as arrays."""

    frames: np.ndarray
    indices: np.ndarray
    timestamps_s: np.ndarray
    num_source_frames: int
    duration_s: float


class Limits(NamedTuple):
    """How much a file may ask for before it is refused."""

    timeout_s: float
    deadline: float  # on the monotonic clock: timeout_s after the start
    max_frame_pixels: int
    max_bytes: int  # of the frames returned

    def check(self, path: str, num_frames: int, width: int, height: int) -> None:
        """Refuse frames that are too large, before memory for them is taken."""
        if width * height > self.max_frame_pixels:
            got = f"its frames have {width} x {height} = {width * height} pixels, at most {self.max_frame_pixels} fit"
            raise VideoReadError(path, f"{got}; raise max_frame_pixels of read_video, or convert it to a smaller size")
        if (size := num_frames * width * height * 3) > self.max_bytes:
            got = f"{num_frames} frames of {width} x {height} take {size} bytes, at most {self.max_bytes} fit"
            raise VideoReadError(path, f"{got}; raise max_bytes of read_video, ask for fewer frames, or convert it")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """An open file and its main video stream."""

    path: str
    container: InputContainer
    stream: VideoStream
    limits: Limits
    said: list[tuple[int, str, str]]  # FFmpeg's log, as it grows

    def packets(self) -> Iterator[av.Packet]:
        """Yield the stream's packets and last the empty one that flushes the decoder."""
        for packet in self.container.demux(self.stream):
            if time.monotonic() > self.limits.deadline:
                raise VideoReadError(self.path, "reading took longer than timeout_s; raise it, or cut the video")
            yield packet

    def container_errors(self) -> list[str]:
        """Return the complaints of FFmpeg's demuxer."""
        lost = "freeing incomplete packet"  # how the demuxer of ASF mentions that a piece is missing
        names = (self.container.format.name, "")
        return [m for level, name, m in self.said if name in names and (level <= _ERROR or m.startswith(lost))]

    def decoder_errors(self, *, references: bool = True) -> list[str]:
        """Return the complaints of the decoder, or of the parser before it, since `forget`.

        Args:
            references: include those about missing reference frames, which are normal after an open group's start.
        """
        name = self.stream.codec_context.name
        errors = [m for level, who, m in self.said if level <= _ERROR and who == name]
        return errors if references else [m for m in errors if not re.search(_ABOUT_REFERENCES, m)]

    def forget(self) -> None:
        """Drop the complaints so far."""
        self.said.clear()


def import_av(path: str) -> ModuleType:
    """Import PyAV, or raise an error that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise VideoReadError(path, f"PyAV does not load ({one_line(error)}); run: pip install av") from error
    return av


def lenient() -> dict[str, str]:
    """Options for `av.open` that accept a title which is not UTF-8; from version 19 on PyAV does so by itself."""
    import av

    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened(path: str, limits: Limits, **options: str) -> Iterator[Source]:
    """Open a file and its main video stream; errors of FFmpeg inside the block become VideoReadError."""
    av = import_av(path)
    # "file:" and the lists keep FFmpeg from taking the name for an address and from opening what the file points to.
    url = f"file:{os.path.abspath(path)}"
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", **options}
    # No options for decoders: given any, PyAV 15 writes beyond its memory if a container, such as FLV, announces its
    # streams late.
    with complaints() as said:
        try:
            with av.open(url, container_options=options, **lenient()) as container:
                yield Source(
                    path=path, container=container, stream=_main_stream(path, container), limits=limits, said=said
                )
        except av.FFmpegError as error:
            raise VideoReadError(path, _why_it_fails(error, said)) from error


def _main_stream(path: str, container: InputContainer) -> Any:
    import av

    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:  # a cover picture
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoReadError(path, f"it has no readable video stream (only: {kinds}); name another file")
    if stream.codec_context is None:
        raise VideoReadError(path, "this FFmpeg has no decoder for its codec; convert it to H.264")
    # With threads, it depends on which of them is faster whether a damaged frame is marked as such.
    stream.codec_context.thread_count = 1
    return stream


def _why_it_fails(error: av.FFmpegError, said: list[tuple[int, str, str]]) -> str:
    way_out = "check that it plays, copy it again or convert it"
    if any("not on whitelist" in message for _, _, message in said):
        return "it is no known kind of video (a playlist, a rare container?); convert it to .mp4"
    return f"it is damaged or no known kind of video ({error.strerror}); {way_out}"
