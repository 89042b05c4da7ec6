"""The readers by name: the default one, torchcodec and decord."""

from __future__ import annotations

import os

from tango.errors import VideoReadError
from tango.video.index import SEEKABLE, Index, index_frames
from tango.video.pixels import is_mirrored
from tango.video.reader import check_pictures, leaves_damage, read_pyav
from tango.video.sampling import one_line, sample_indices
from tango.video.source import Clip, Limits, opened


def _checked(path: str, num_frames: int, limits: Limits) -> tuple[Index, set[str]]:
    """Check a file as the default reader does; return its index and the names of its container.

    Without these checks, other decoders follow playlists, open addresses, read images, take any amount of memory and
    ignore mirroring.
    """
    with opened(path, limits) as source:
        limits.check(path, num_frames, source.stream.width, source.stream.height)
        index = index_frames(source)
        containers = set(source.container.format.name.split(","))
    with opened(path, limits) as source:
        first = next((frame for packet in source.packets() for frame in packet.decode()), None)
        if first is not None and is_mirrored(first):
            raise VideoReadError(path, "this backend does not show mirrored video as players do; use backend='auto'")
    return index, containers


def read_torchcodec(path: str, num_frames: int, limits: Limits) -> Clip:
    """Read with torchcodec, if the installed build works with this torch and FFmpeg."""
    _checked(path, num_frames, limits)
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        decoder = VideoDecoder(os.path.abspath(path), seek_mode="exact", dimension_order="NHWC")
        decoder.get_frame_at(0)  # a build that loads can still fail to decode
        indices = sample_indices(len(decoder), num_frames)
        batch = decoder.get_frames_at(indices.tolist())
    except (ImportError, OSError, RuntimeError, ValueError, IndexError) as error:  # OSError: built for another torch
        reason = f"torchcodec does not load, or cannot decode this file ({one_line(error)})"
        way_out = "install a torchcodec that fits this torch and FFmpeg, or use backend='auto'"
        raise VideoReadError(path, f"{reason}; {way_out}") from error
    start_s, end_s = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    return Clip(batch.data.numpy(), indices, batch.pts_seconds.numpy() - start_s, len(decoder), end_s - start_s)


def read_decord(path: str, num_frames: int, limits: Limits) -> Clip:
    """Read with decord, except from files of which it is known to return other frames than those asked for."""
    from tango.video.decord_worker import run_worker

    index, containers = _checked(path, num_frames, limits)
    if "mpegts" in containers:
        raise VideoReadError(path, "decord reads other frames of MPEG-TS than those asked for; use backend='auto'")
    is_mov = "mov" in containers  # whose edit lists decord ignores, as documented
    has_odd_times = index.times[0] < 0 if index.times else bool(containers & SEEKABLE)
    if not is_mov and has_odd_times:
        raise VideoReadError(path, "decord reads other frames where times are negative or missing; use backend='auto'")
    with opened(path, limits) as source:
        if leaves_damage(source.stream.codec_context.codec):  # decord does not report it
            check_pictures(source, index)
    in_order = index.has_open_groups or not index.keyframes
    clip = run_worker(path, num_frames, limits.timeout_s, in_order=in_order)
    if clip.num_source_frames != index.num_frames and not is_mov:
        counts = f"decord sees {clip.num_source_frames} frames, but it has {index.num_frames}"
        raise VideoReadError(path, f"{counts}; use backend='auto'")
    return clip


BACKENDS = {"auto": read_pyav, "pyav": read_pyav, "torchcodec": read_torchcodec, "decord": read_decord}
