"""What a file's packets tell of its frames: how many there are, when each is shown, where decoding can start."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tango.errors import VideoReadError
from tango.video.sampling import one_line
from tango.video.source import Source, opened

# Containers whose packets carry true presentation times. Others (AVI, raw streams) give decoding times or none.
SEEKABLE = {"matroska", "mov", "mpegts", "flv"}
_MAX_PACKETS = 5_000_000  # a day at 60 frames a second is as many; each takes some 200 bytes here


class Packet(NamedTuple):
    """One coded frame. Times are in ticks of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_shown: bool  # False: other frames are decoded from it, but it is never shown


class Index(NamedTuple):
    """What the packets tell of the displayed frames; almost nothing is decoded for it."""

    num_frames: int
    times: list[int] | None  # in display order; None where the container has none
    keyframes: list[tuple[int, int]]  # (pts, where to seek), in display order; empty where seeking is unsafe
    starts_open: bool  # the first frames cannot be decoded, because the frames that they refer to were cut off
    has_open_groups: bool  # frames that follow a keyframe in the file are shown before it
    last_duration: int


def index_frames(source: Source) -> Index:
    """Read all packets of a file; refuse the file if FFmpeg says that packets are damaged or missing."""
    packets = _read_packets(source)
    _check_complete(source, len(packets))
    whole, packets = packets, _without_undecodable_start(source, packets)
    shown = [p for p in packets if p.is_shown]
    if not shown:
        raise VideoReadError(source.path, "its video stream holds no frames; check that it plays, copy it again")
    by_pts = sorted({p.pts for p in shown if p.pts is not None})
    by_dts = sorted({p.dts for p in shown if p.dts is not None})  # sorted, they are the pts up to a constant
    times = next((t for t in (by_pts, by_dts) if len(t) == len(shown)), None)
    if _jumps_back(packets):  # frames are not displayed in the order of their times
        times = None
    keyframes = []
    is_seekable = times is by_pts and SEEKABLE & set(source.container.format.name.split(","))
    if is_seekable and not source.decoder_errors(references=False):
        # Demuxers seek by decoding time where they know it, and that is never after the presentation time.
        keys = [p for p in packets if p.is_keyframe]
        keyframes = sorted((p.pts, p.pts if p.dts is None else p.dts) for p in keys if p.pts is not None)
    last = max(shown, key=lambda p: p.pts or 0)
    return Index(len(shown), times, keyframes, packets is not whole, _has_open_groups(packets), last.duration)


def _read_packets(source: Source) -> list[Packet]:
    packets: list[Packet] = []
    corrupt: list[int] = []
    has_key = False
    for p in source.packets():
        if p.is_corrupt:
            corrupt.append(len(packets))
        if errors := source.container_errors():
            reason = f"its container is damaged at packet {len(packets)} (FFmpeg: {one_line(errors[0])})"
            raise VideoReadError(source.path, f"{reason}; download or copy it again")
        if len(packets) == _MAX_PACKETS:
            raise VideoReadError(source.path, f"it has more than {_MAX_PACKETS} frames; cut it into parts")
        if p.size:  # VP8 keeps frames that are never shown as packets of their own: bit 4 of the first byte is clear
            is_shown = not p.is_discard and (source.stream.codec.name != "vp8" or bool(bytes(p)[0] & 16))
            packets.append(Packet(p.pts, p.dts, p.duration or 0, p.is_keyframe, is_shown))
        if p.is_keyframe and not has_key:
            has_key = True
            source.forget()  # before the first keyframe, parsers complain of any stream that was cut
    for i in corrupt:
        if not _jumps_back(packets[i : i + 4]):  # where streams were joined, counters jump without any damage
            raise VideoReadError(source.path, f"packet {i} is damaged or cut short; copy the file again")
    return packets


def _jumps_back(packets: list[Packet]) -> bool:
    """Whether decoding times decrease anywhere, as in MPEG-TS files that were appended to each other."""
    times = [p.dts for p in packets if p.dts is not None]
    return any(later < earlier for earlier, later in pairwise(times))


def _has_open_groups(packets: list[Packet]) -> bool:
    key_pts = None
    for p in packets:
        if p.pts is None:
            continue
        if p.is_keyframe:
            key_pts = p.pts
        elif key_pts is not None and p.pts < key_pts:
            return True
    return False


def _check_complete(source: Source, num_packets: int) -> None:
    """Refuse a file that holds fewer packets than its header states."""
    stated = source.stream.frames
    if source.container.format.name == "mxf":  # its header states the duration, in frames
        stated = source.stream.duration or 0
    if num_packets >= stated or source.container.format.name == "avi":  # AVI states time slots, not frames
        return
    with opened(source.path, source.limits, ignore_editlist="1") as whole:  # an edit list may leave packets out
        num_packets = sum(packet.size > 0 for packet in whole.packets())
    if num_packets < stated:
        reason = f"it is cut short: {num_packets} of {stated} frames are there"
        raise VideoReadError(source.path, f"{reason}; download or copy it again")


def _without_undecodable_start(source: Source, packets: list[Packet]) -> list[Packet]:
    """Drop the packets before the first keyframe and those shown before it, if decoders cannot show them.

    A stream that was cut at an open group of pictures starts with frames whose references are gone; players skip them.
    """
    key = next((i for i, p in enumerate(packets) if p.is_keyframe and p.pts is not None), None)
    if key is None:
        return packets
    key_pts, end = packets[key].pts or 0, key + 1
    while end < len(packets) and ((pts := packets[end].pts) is None or pts < key_pts):
        end += 1
    if key == 0 and end == 1:
        return packets
    with opened(source.path, source.limits) as again:
        first = next((frame for packet in again.packets() for frame in packet.decode()), None)
    return [packets[key], *packets[end:]] if first is not None and first.pts == key_pts else packets


def times_s(source: Source, index: Index, indices: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the seconds from the first displayed frame to each sampled one, and the duration of the video."""
    rate = float(source.stream.average_rate or source.stream.guessed_rate or 0)
    if index.times is None:
        if not rate:
            raise VideoReadError(source.path, "it has neither times nor a frame rate; convert it to .mp4")
        return indices / rate, index.num_frames / rate
    tick_s = float(source.stream.time_base or 0)
    span_s = (index.times[-1] - index.times[0]) * tick_s
    last_s = index.last_duration * tick_s or (1 / rate if rate else 0.0)
    return (np.array(index.times)[indices] - index.times[0]) * tick_s, span_s + last_s
