"""The default reader: decodes only the groups of pictures that hold wanted frames."""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tango.errors import DamagedVideoWarning, VideoReadError
from tango.video.index import Index, index_frames, times_s
from tango.video.pixels import Converter
from tango.video.sampling import one_line, sample_indices
from tango.video.source import Clip, Limits, Source, import_av, opened

if TYPE_CHECKING:
    import av

# Up to this distance in frames, decoding on is cheaper than a seek, after which a decoder must fill its buffers.
_WORTH_A_SEEK = 16


class _SeekFailed(Exception):
    """A wanted frame cannot be reached by seeking."""


def read_pyav(path: str, num_frames: int, limits: Limits) -> Clip:
    """Decode only the groups of pictures that hold wanted frames, or everything where that fails."""
    av = import_av(path)
    with opened(path, limits) as source:
        limits.check(path, num_frames, source.stream.width, source.stream.height)
        index = index_frames(source)
        indices = sample_indices(index.num_frames, num_frames)
        timestamps_s, duration_s = times_s(source, index, indices)
        try:
            frames = _gather(source, indices, _frames_by_seeking(source, index, indices))
        except (av.FFmpegError, _SeekFailed):  # seeking is impossible or landed badly, as it may in a sound file
            frames = None
    if frames is None:  # decoding everything decides whether the file is damaged
        with opened(path, limits) as source:
            frames = _gather(source, indices, _frames_in_order(source, index, indices))
    return Clip(frames, indices, timestamps_s, index.num_frames, duration_s)


def _frames_by_seeking(source: Source, index: Index, indices: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
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


def _decode_from(source: Source, keyframe: tuple[int, int], wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (pts, frame) from a keyframe on, in display order; frames that no other refers to only where wanted."""
    key_pts, seek_to = keyframe
    source.container.seek(seek_to, stream=source.stream)
    started, previous = False, key_pts - 1
    for packet in source.packets():
        started = started or packet.pts == key_pts  # the seek may land earlier
        if not started:
            continue
        source.stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        source.forget()
        is_leading = packet.pts is not None and packet.pts < key_pts  # built on frames before the keyframe
        for frame in packet.decode():
            if frame.pts is not None and frame.pts < key_pts:
                continue
            if frame.is_corrupt or frame.pts is None or frame.pts <= previous:
                raise _SeekFailed
            previous = frame.pts
            yield frame.pts, frame
        if not is_leading and source.decoder_errors(references=False):
            raise _SeekFailed


def _frames_in_order(source: Source, index: Index, indices: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield each wanted frame once, decoding everything from the start.

    Frames marked as damaged are refused. Where FFmpeg complains but marks none, its frames come with a warning.
    """
    wanted, count = set(indices.tolist()), 0
    errors: list[str] = []
    # Until the second keyframe, a sound file with an open start may lack references.
    keys_to_start = 2 if index.starts_open else 0
    for packet in source.packets():
        keys_to_start -= packet.is_keyframe
        source.forget()
        for frame in packet.decode():
            if frame.is_corrupt:
                raise VideoReadError(source.path, f"frame {count} is damaged; download or copy the file again")
            if count in wanted:
                yield count, frame
            count += 1
        if keys_to_start <= 1:
            errors += source.decoder_errors(references=keys_to_start <= 0)[:1]
    if count != index.num_frames:
        reason = f"{count} frames can be decoded of the {index.num_frames} it lists"
        raise VideoReadError(source.path, f"{reason}; copy it again or convert it")
    if errors and leaves_damage(source.stream.codec_context.codec):
        reason = f"pictures are damaged ({one_line(errors[0])})"
        raise VideoReadError(source.path, f"{reason}; download or copy the file again")
    if errors:
        said = f"FFmpeg reads it, but reports {len(errors)} errors, the first: {one_line(errors[0])}"
        warnings.warn(f"{source.path}: {said}; check that it plays, copy it again", DamagedVideoWarning, stacklevel=2)


def check_pictures(source: Source, index: Index) -> None:
    """Decode everything and keep nothing, to raise for damaged pictures."""
    for _ in _frames_in_order(source, index, np.empty(0, dtype=int)):
        pass


def leaves_damage(codec: av.codec.Codec) -> bool:
    """Whether a decoder leaves pixels that it cannot decode as its memory happened to be, different in each run.

    Decoders of codecs with motion conceal them from other frames, always in the same way.
    """
    return codec.intra_only or (codec.lossless and not codec.lossy)


def _gather(source: Source, indices: np.ndarray, wanted: Iterable[tuple[int, av.VideoFrame]]) -> np.ndarray:
    """Convert frames to upright RGB: one array (n, h, w, 3) in which frame i fills every row whose index is i."""
    frames = np.empty((len(indices), 0, 0, 3), dtype=np.uint8)
    convert = Converter()
    for i, frame in wanted:
        try:
            pixels = convert(frame)
        except ValueError as error:
            raise VideoReadError(source.path, str(error)) from error
        if frames.size == 0:
            source.limits.check(source.path, len(indices), pixels.shape[1], pixels.shape[0])
            frames = np.empty((len(indices), *pixels.shape), dtype=np.uint8)
        if pixels.shape != frames.shape[1:]:
            raise VideoReadError(source.path, f"its frame size changes at frame {i}; convert it to one size")
        frames[indices == i] = pixels
    return frames
