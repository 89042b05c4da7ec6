"""Read a video file: uniformly sampled frames, with the time at which each is shown."""

from __future__ import annotations

import os
import re
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tango.errors import UnknownNameError, VideoReadError
from tango.sampling import one_line, sample_indices
from tango.sources import is_file, read_source, refuse_fps

if TYPE_CHECKING:  # at run time torch and PyAV load on first use: the decord worker imports this module without them
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from tango.containers import Video

# Only real video containers: no playlists, image sequences, text art or devices, which FFmpeg would open as "video".
_CONTAINERS = "asf,avi,flv,h264,hevc,m4v,matroska,mov,mpeg,mpegts,mpegvideo"
# Those whose packets carry true presentation times. The others (AVI, raw streams) give decoding times or none.
_SEEKABLE = {"matroska", "mov", "mpegts", "flv"}
# Decoding on is cheaper than a seek over fewer frames than a decoder holds back.
_WORTH_A_SEEK = 16
_IMAGE = rb"\x89PNG|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|BM....\0\0\0\0|RIFF....WEBP|....ftyp(avif|heic|heix|mif1)"
_BINARY = set(range(32)) - set(b"\t\n\r\f\x1b")  # bytes that no text file has


def read_video(
    video: Any, *, num_frames: int, backend: str = "auto", timeout_s: float = 120.0, fps: float | None = None
) -> Video:
    """Read `num_frames` frames, spread evenly over the file from its first displayed frame to its last.

    The video may be a path or `file://` address; the contents of a file, as bytes or a binary file object (read from
    its beginning where it can seek, left where it was, not closed); a folder of frames; or frames: a list of Pillow
    images, of paths of images or of uint8 arrays (h, w, 3), or an array or tensor (T, h, w, 3). Frames of a folder are
    its images in natural order of their names (frame_2 before frame_10), other and hidden files do not count, and those
    not taken are not opened.

    Frames come upright (a rotation stored in the file is applied) and exactly as a decoder that starts at the
    beginning shows them. A frame that cannot be had is an error, never a shorter or repeated answer; frames repeat
    only where the file has fewer than `num_frames`. Streams that state no length (MPEG-TS, FLV, raw) end where the file
    ends, and pixels that a damaged file still decodes to without complaint cannot be told from true ones.

    Args:
        backend: "auto" and "pyav" are the same exact reader. "torchcodec" and "decord" are used only when named. decord
            ignores edit lists: on clips cut without recoding it returns other frames, as the paper's release does.
        timeout_s: give up after this long. decord is killed then; torchcodec cannot be interrupted.
        fps: frames a second of what has no times of its own, a folder and frames; None: 3, as MVBench's folders have.

    Raises:
        VideoReadError: the file is missing, damaged or no video, or the backend cannot be used.
        UnknownNameError: there is no such backend.
        OptionError: `fps` is not positive, or given for a file, which has its own.
        ValueError: `num_frames` is below 1.
    Source: the sampling is that of the paper's release (arXiv:2604.09547), which reads with decord.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    check_backend(backend)
    if not is_file(video):
        read_file = partial(read_video, num_frames=num_frames, backend=backend, timeout_s=timeout_s)
        return read_source(video, num_frames=num_frames, fps=fps, timeout_s=timeout_s, read_file=read_file)
    refuse_fps(fps)
    path = os.fsdecode(video)
    _check_file(path)
    clip = _BACKENDS[backend](path, num_frames, timeout_s)

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
    if name not in _BACKENDS:
        raise UnknownNameError("video backend", name, _BACKENDS)


class _Clip(NamedTuple):
    """What a backend delivers: a Video before it becomes tensors."""

    frames: np.ndarray
    indices: np.ndarray
    timestamps_s: np.ndarray
    num_source_frames: int
    duration_s: float


def _check_file(path: str) -> None:
    """Refuse what is not a whole, regular file that may be a video, before any decoder touches it."""
    try:
        info, head = os.stat(path), b""
        if stat.S_ISREG(info.st_mode):  # opening a pipe or a device can block for ever
            with open(path, "rb") as file:
                head = file.read(4096)
    except FileNotFoundError as error:
        raise VideoReadError(path, "no such file; check the path (an address must be downloaded first)") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise VideoReadError(path, f"it cannot be opened ({one_line(error)}); check its name and rights") from error
    if not stat.S_ISREG(info.st_mode):
        kind = "directory" if stat.S_ISDIR(info.st_mode) else "pipe or device"
        raise VideoReadError(path, f"it is a {kind}, expected a regular file; name a video file")
    if not head:
        raise VideoReadError(path, "the file is empty, expected a video; download or copy it again")
    if re.match(_IMAGE, head, re.DOTALL):
        raise VideoReadError(path, "it is an image, expected a video file such as .mp4; convert it or name another")
    if not set(head) & _BINARY:
        raise VideoReadError(path, "it is text (a playlist, a web page?), expected a video file; name the video itself")
    if (stated := _stated_size(head)) > info.st_size:
        raise VideoReadError(path, f"it is cut short: {info.st_size} of {stated} bytes; download or copy it again")


def _stated_size(head: bytes) -> int:
    """Read how many bytes a Matroska/WebM or AVI file must have at least, from its header; 0 where none is stated.

    The demuxers of these two stop without an error where the data end.
    """
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
    at = head.find(b"\x18\x53\x80\x67") + 4 if head[:4] == b"\x1a\x45\xdf\xa3" else 0  # the Segment in an EBML file
    if at < 4 or len(head) < at + 8 or head[at] == 0:
        return 0
    num_bytes = 9 - head[at].bit_length()  # leading zero bits of the first byte say how many bytes hold the size
    largest = (1 << 7 * num_bytes) - 1
    size = int.from_bytes(head[at : at + num_bytes], "big") & largest
    return 0 if size == largest else at + num_bytes + size  # all ones: recorded live, size unknown


class _SeekFailed(Exception):
    """A wanted frame cannot be had by seeking."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Source:
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


class _Packet(NamedTuple):
    """One coded frame. Times are in ticks of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_shown: bool  # or only there for others to be decoded from


class _Index(NamedTuple):
    """What the packets say of the displayed frames, almost without decoding."""

    num_frames: int
    times: list[int] | None  # in display order; None where the container has none
    keyframes: list[tuple[int, int]]  # (pts, where to seek), in display order; empty where seeking is unsafe
    last_duration: int


def _read_pyav(path: str, num_frames: int, timeout_s: float) -> _Clip:
    """Decode only the groups of pictures that hold wanted frames, or everything where that fails."""
    av = _import_av(path)
    deadline = time.monotonic() + timeout_s
    with _opened(path, deadline) as source:
        index = _index_frames(source)
        indices = sample_indices(index.num_frames, num_frames)
        timestamps_s, duration_s = _times_s(source, index, indices)
        try:
            frames = _gather(path, indices, _frames_by_seeking(source, index, indices))
        except (av.FFmpegError, _SeekFailed):  # no way to seek, or one landed badly, as it may in a sound file
            frames = None
    if frames is None:  # then a pass over everything is the judge
        with _opened(path, deadline) as source:
            frames = _gather(path, indices, _frames_in_order(source, index, indices))
    return _Clip(frames, indices, timestamps_s, index.num_frames, duration_s)


def _import_av(path: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoReadError(path, f"PyAV does not load ({one_line(error)}); run: pip install av") from error
    return av


@contextmanager
def _opened(path: str, deadline: float, **options: str) -> Iterator[_Source]:
    """Open a file and its main video stream; errors of FFmpeg inside the block become VideoReadError."""
    av = _import_av(path)
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
            yield _Source(path=path, container=container, stream=stream, deadline=deadline)
    except av.FFmpegError as error:
        reason = f"it is damaged or no known kind of video ({error.strerror})"
        raise VideoReadError(path, f"{reason}; check that it plays, copy it again or convert it") from error


def _index_frames(source: _Source) -> _Index:
    packets: list[_Packet] = []
    for p in source.packets():
        if p.is_corrupt:
            raise VideoReadError(source.path, f"packet {len(packets)} is damaged or cut short; copy the file again")
        if p.size:  # VP8 keeps frames that are never shown as packets of their own: bit 4 of the first byte is clear
            is_shown = not p.is_discard and (source.stream.codec.name != "vp8" or bool(bytes(p)[0] & 16))
            packets.append(_Packet(p.pts, p.dts, p.duration or 0, p.is_keyframe, is_shown))
    _check_complete(source, len(packets))
    packets = _without_undecodable_start(source, packets)
    shown = [p for p in packets if p.is_shown]
    if not shown:
        raise VideoReadError(source.path, "its video stream holds no frames; check that it plays, copy it again")
    by_pts = sorted({p.pts for p in shown if p.pts is not None})
    by_dts = sorted({p.dts for p in shown if p.dts is not None})  # in this order as good, up to a constant
    times = next((t for t in (by_pts, by_dts) if len(t) == len(shown)), None)
    keyframes = []
    if times is by_pts and _SEEKABLE & set(source.container.format.name.split(",")):
        # Demuxers seek by decoding time where they know it; it is never after the presentation time.
        keys = [p for p in packets if p.is_keyframe]
        keyframes = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in keys if p.pts is not None)
    last = max(shown, key=lambda p: p.pts or 0)
    return _Index(len(shown), times, keyframes, last.duration)


def _check_complete(source: _Source, num_packets: int) -> None:
    """Refuse a file with fewer packets than its header states."""
    stated = source.stream.frames
    if num_packets >= stated or source.container.format.name == "avi":  # AVI states time slots, not frames
        return
    with _opened(source.path, source.deadline, ignore_editlist="1") as whole:  # an edit list may leave packets out
        num_packets = sum(packet.size > 0 for packet in whole.packets())
    if num_packets < stated:
        reason = f"it is cut short: {num_packets} of {stated} frames are there"
        raise VideoReadError(source.path, f"{reason}; download or copy it again")


def _without_undecodable_start(source: _Source, packets: list[_Packet]) -> list[_Packet]:
    """Drop what comes before the first keyframe or is shown before it, if decoders cannot show it.

    A stream cut at an open group of pictures starts with frames whose references are gone; players skip them.
    """
    key = next((i for i, p in enumerate(packets) if p.is_keyframe and p.pts is not None), None)
    if key is None:
        return packets
    key_pts, end = packets[key].pts or 0, key + 1
    while end < len(packets) and ((pts := packets[end].pts) is None or pts < key_pts):
        end += 1
    if key == 0 and end == 1:
        return packets
    with _opened(source.path, source.deadline) as again:
        first = next((frame for packet in again.packets() for frame in packet.decode()), None)
    return [packets[key], *packets[end:]] if first is not None and first.pts == key_pts else packets


def _times_s(source: _Source, index: _Index, indices: np.ndarray) -> tuple[np.ndarray, float]:
    """Return when each sampled frame is shown, from the first displayed frame on, and how long all are shown."""
    rate = float(source.stream.average_rate or source.stream.guessed_rate or 0)
    if index.times is None:
        if not rate:
            raise VideoReadError(source.path, "it has neither times nor a frame rate; convert it to .mp4")
        return indices / rate, index.num_frames / rate
    tick_s = float(source.stream.time_base or 0)
    span_s = (index.times[-1] - index.times[0]) * tick_s
    last_s = index.last_duration * tick_s or (1 / rate if rate else 0.0)
    return (np.array(index.times)[indices] - index.times[0]) * tick_s, span_s + last_s


def _frames_by_seeking(source: _Source, index: _Index, indices: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield each wanted frame once, decoding from the keyframe before it."""
    times, key_times = index.times, [pts for pts, _ in index.keyframes]
    if times is None:
        raise _SeekFailed
    positions = sorted(set(indices.tolist()))
    wanted = {times[i] for i in positions}
    frames: Iterator[tuple[int, av.VideoFrame]] = iter(())
    reached = -_WORTH_A_SEEK - 1
    for i in positions:
        key = bisect_right(key_times, times[i]) - 1
        if key < 0:
            raise _SeekFailed
        if bisect_left(times, key_times[key]) - reached > _WORTH_A_SEEK:
            frames = _decode_from(source, index.keyframes[key], wanted)
        pts, frame = next((f for f in frames if f[0] >= times[i]), (None, None))
        if frame is None or pts != times[i]:
            raise _SeekFailed
        yield i, frame
        reached = i


def _decode_from(source: _Source, keyframe: tuple[int, int], wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (pts, frame) from a keyframe on, in display order; frames that no other needs only where wanted."""
    key_pts, seek_to = keyframe
    source.container.seek(seek_to, stream=source.stream)
    started, previous = False, key_pts - 1
    for packet in source.packets():
        started = started or packet.pts == key_pts  # the seek may land earlier
        if not started:
            continue
        source.stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts is not None and frame.pts < key_pts:
                continue  # shown before the keyframe, so built on frames before it, which were not decoded
            if frame.is_corrupt or frame.pts is None or frame.pts <= previous:
                raise _SeekFailed
            previous = frame.pts
            yield frame.pts, frame


def _frames_in_order(source: _Source, index: _Index, indices: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield each wanted frame once, decoding everything from the start."""
    wanted, count = set(indices.tolist()), 0
    for packet in source.packets():
        for frame in packet.decode():
            if frame.is_corrupt:
                raise VideoReadError(source.path, f"frame {count} is damaged; download or copy the file again")
            if count in wanted:
                yield count, frame
            count += 1
    if count != index.num_frames:
        reason = f"{count} frames can be decoded of the {index.num_frames} it lists"
        raise VideoReadError(source.path, f"{reason}; copy it again or convert it")


def _gather(path: str, indices: np.ndarray, wanted: Iterable[tuple[int, av.VideoFrame]]) -> np.ndarray:
    """Convert frames to upright RGB, one array (n, h, w, 3) in which frame i fills every place that asks for it."""
    frames = np.empty((len(indices), 0, 0, 3), dtype=np.uint8)
    for i, frame in wanted:
        # `rotation` counts counter-clockwise degrees, as np.rot90 does.
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
        if frames.size == 0:
            frames = np.empty((len(indices), *pixels.shape), dtype=np.uint8)
        if pixels.shape != frames.shape[1:]:
            raise VideoReadError(path, f"its frame size changes at frame {i}; convert it to one size")
        frames[indices == i] = pixels
    return frames


def _read_torchcodec(path: str, num_frames: int, timeout_s: float) -> _Clip:
    with _opened(path, time.monotonic() + timeout_s):
        pass  # torchcodec itself would follow playlists and read images
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        decoder = VideoDecoder(path, seek_mode="exact", dimension_order="NHWC")
        decoder.get_frame_at(0)  # a build that loads can still fail to decode
        indices = sample_indices(len(decoder), num_frames)
        batch = decoder.get_frames_at(indices.tolist())
    except (ImportError, OSError, RuntimeError, ValueError, IndexError) as error:  # OSError: built for another torch
        reason = f"torchcodec does not load, or cannot decode this file ({one_line(error)})"
        way_out = "install a torchcodec that fits this torch and FFmpeg, or use backend='auto'"
        raise VideoReadError(path, f"{reason}; {way_out}") from error
    start_s, end_s = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    return _Clip(batch.data.numpy(), indices, batch.pts_seconds.numpy() - start_s, len(decoder), end_s - start_s)


def _read_decord(path: str, num_frames: int, timeout_s: float) -> _Clip:
    from tango._decord_worker import run_worker

    with _opened(path, time.monotonic() + timeout_s):
        pass  # decord itself would follow playlists and read images
    return _Clip(**run_worker(path, num_frames, timeout_s))


_BACKENDS = {"auto": _read_pyav, "pyav": _read_pyav, "torchcodec": _read_torchcodec, "decord": _read_decord}
