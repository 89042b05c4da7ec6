"""The readers by name: the default one, torchcodec and decord."""

from __future__ import annotations

from tango.errors import VideoReadError
from tango.sampling import one_line, sample_indices
from tango.video.reader import read_pyav
from tango.video.source import Clip, Limits, opened


def read_torchcodec(path: str, num_frames: int, limits: Limits) -> Clip:
    with opened(path, limits) as source:  # so that no playlist is followed and no image read
        limits.check(path, num_frames, source.stream.width, source.stream.height)
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
    return Clip(batch.data.numpy(), indices, batch.pts_seconds.numpy() - start_s, len(decoder), end_s - start_s)


def read_decord(path: str, num_frames: int, limits: Limits) -> Clip:
    from tango._decord_worker import run_worker

    with opened(path, limits) as source:  # so that no playlist is followed and no image read
        limits.check(path, num_frames, source.stream.width, source.stream.height)
    return Clip(**run_worker(path, num_frames, limits.timeout_s))


BACKENDS = {"auto": read_pyav, "pyav": read_pyav, "torchcodec": read_torchcodec, "decord": read_decord}
