"""R1 and R2: what readers return for damaged files, and whether they return the exact frames of sound ones."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tango.lab.reliability.corpus import CORPUS, make
from tango.lab.reliability.workers import Bench, Outcome, Row, counted, run_all
from tango.video.pixels import Converter
from tango.video.reading import read_video
from tango.video.sampling import sample_indices
from tango.video.source import lenient

# The sound files that are damaged: the main containers and codecs.
SOURCES = (
    "faststart.mp4", "fragmented.mp4", "h264.mkv", "h264.avi", "h264.ts", "h264.flv", "h264.h264", "vp8.webm",
    "vp9.webm", "vp9.ivf", "wmv2.wmv", "mpeg2.mpg", "mpeg4.avi", "hevc.mp4", "hevc.mkv", "av1.mp4", "mjpeg.avi",
    "ffv1.mkv", "prores.mov", "h264.nut", "h264.mxf", "mpeg2.ts", "raw.y4m", "moving.gif", "h264.mov",
)  # fmt: skip
_NUM_FUZZED = 200
_REPEATS = 5


class Reading(NamedTuple):
    """How a reader read a file: the number of frames in it, and a digest of each frame that was returned."""

    total: int
    frames: tuple[str, ...]
    complaints: tuple[str, ...] = ()  # errors that FFmpeg logged; only of sequential readings


def digests(frames: Iterable[np.ndarray]) -> tuple[str, ...]:
    """A short digest of every frame's shape and pixels."""
    return tuple(hashlib.sha256(f"{f.shape}".encode() + f.tobytes()).hexdigest()[:12] for f in map(np.asarray, frames))


def sequential(path: Path, name: str) -> Reading:
    """Decode from the start, on one thread, and note FFmpeg's complaints; only the colours are computed by Tango."""
    import av

    upright, convert = CORPUS[name].upright, Converter()
    frames = []
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as log, av.open(str(path), **lenient()) as container:
            container.streams.video[0].codec_context.thread_count = 1
            try:
                for frame in container.decode(video=0):
                    # Where the entry has its own `upright`, Tango takes no part, so that its orientations are tested.
                    pixels = upright(frame.to_ndarray(format="rgb24")) if upright else convert(frame)
                    frames.append(np.ascontiguousarray(pixels))
            except av.FFmpegError as error:
                log.append((av.logging.ERROR, "decoder", str(error)))
    finally:
        av.logging.set_level(None)
    complaints = tuple(sorted({f"{where}: {said.strip()}" for level, where, said in log if level <= av.logging.ERROR}))
    return Reading(len(frames), digests(frames), complaints)


def read(path: Path, num_frames: int, backend: str) -> Reading:
    """Read with Tango."""
    video = read_video(path, num_frames=num_frames, backend=backend)
    return Reading(video.num_source_frames, digests(video.frames.numpy()))


def backends() -> list[str]:
    """The readers that are installed here."""
    return ["pyav", *(name for name in ("torchcodec", "decord") if find_spec(name) is not None)]


def check_damaged(bench: Bench) -> Iterator[Row]:
    """R1: read bad files and fuzzed ones, with every reader."""
    made = _made(bench)
    sources = [name for name in SOURCES if name in made]
    truths = dict(zip(sources, _sequential([(made[name], name) for name in sources], bench), strict=True))
    bad = write_bad_files(bench.folder, made["faststart.mp4"])
    fuzzed = list(_fuzzed(bench, {name: made[name] for name in sources}))
    as_ffmpeg = _sequential([(path, name) for name, path in fuzzed], bench)
    for backend in backends():
        repeats = _REPEATS if backend == "pyav" else 1  # decord starts a process each time
        outcomes = run_all([partial(read, path, 8, backend) for path in bad.values()], bench)
        yield counted("R1", f"bad files, {backend}: hangs, signals, untyped errors", len(bad), _broken(bad, outcomes))
        accepted = [name for name, outcome in zip(bad, outcomes, strict=True) if outcome.kind == "ok"]
        yield counted("R1", f"bad files, {backend}: taken for videos", len(bad), accepted)
        counts = [max(1, truths[name].total) for name, _ in fuzzed]
        jobs = [partial(read, path, n, backend) for (_, path), n in zip(fuzzed, counts, strict=True)]
        rounds = [run_all(jobs, bench) for _ in range(repeats)]
        names = [path.name for _, path in fuzzed]
        yield counted("R1", f"fuzzed, {backend}: hangs, signals, untyped errors", len(names), _broken(names, *rounds))
        if repeats > 1:
            verdicts = [{f"{o.kind} {o.value}" for o in tries} for tries in zip(*rounds, strict=True)]
            unlike = [name for name, different in zip(names, verdicts, strict=True) if len(different) > 1]
            yield counted("R1", f"fuzzed, {backend}: other verdicts in {repeats} readings", len(names), unlike)
        judged = [
            verdict(outcome, truths[name], theirs, own_decoder=backend == "decord")
            for (name, _), outcome, theirs in zip(fuzzed, rounds[0], as_ffmpeg, strict=True)
        ]
        yield from _verdict_rows(backend, names, judged)


def verdict(outcome: Outcome, truth: Reading, as_ffmpeg: Reading | None, *, own_decoder: bool = False) -> str:
    """Judge the reading of one damaged file.

    "refused"; "whole": equal to the sound file; "warned": equal to FFmpeg's reading of the damaged file, with a
    warning. Without a warning: "unseen" and "shorter" if FFmpeg does not complain either and returns the same, with all
    frames or fewer; everything else is "silent".

    Args:
        as_ffmpeg: FFmpeg's reading of the damaged file; None: FFmpeg cannot open it.
        own_decoder: the reader brings its own FFmpeg, which may decode the same damage to other pixels.
    """
    if outcome.kind != "ok":
        return "refused"
    got = Reading(*outcome.value)
    if got[:2] == sampled(truth, len(got.frames)):
        return "whole"
    is_ffmpegs = as_ffmpeg is not None and got[:2] == sampled(as_ffmpeg, len(got.frames))
    if outcome.warned:
        return "warned" if is_ffmpegs or as_ffmpeg is None or own_decoder else "not as FFmpeg"
    alike = is_ffmpegs or (own_decoder and as_ffmpeg is not None and got.total == as_ffmpeg.total)
    if as_ffmpeg is None or as_ffmpeg.complaints or not alike:
        return "silent"
    return "unseen" if got.total == truth.total else "shorter"


def sampled(reading: Reading, num_frames: int) -> tuple[int, tuple[str, ...]]:
    """The frames that a reader should sample from a file, given the reading of all its frames."""
    if not reading.total:
        return 0, ()
    return reading.total, tuple(reading.frames[i] for i in sample_indices(reading.total, num_frames))


def _verdict_rows(backend: str, names: list[str], judged: list[str]) -> Iterator[Row]:
    spread = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(judged).items()))
    kinds = {"silent": "wrong frames without a word"}
    if backend == "pyav":
        kinds["not as FFmpeg"] = "warned of, but not as FFmpeg reads them"
    for kind, what in kinds.items():
        found = [name for name, verdict in zip(names, judged, strict=True) if verdict == kind]
        yield counted("R1", f"fuzzed, {backend}: {what}", len(names), found)
    yield Row(
        check="R1", what=f"fuzzed, {backend}: verdicts", tried=len(names), target="stated", got=spread, passed=True
    )  # fmt: skip


def _broken(names: Collection[str], *rounds: list[Outcome]) -> list[str]:
    bad = {"hang", "signal", "crash"}
    pairs = [(name, o) for outcomes in rounds for name, o in zip(names, outcomes, strict=True) if o.kind in bad]
    return list(dict.fromkeys(f"{name}: {o.kind}, {o.message[:120]}" for name, o in pairs))


def _sequential(files: list[tuple[Path, str]], bench: Bench) -> list[Any]:
    """The sequential reading of every file; None where FFmpeg cannot open it."""
    outcomes = run_all([partial(sequential, path, name) for path, name in files], bench)
    return [Reading(*outcome.value) if outcome.kind == "ok" else None for outcome in outcomes]


def _made(bench: Bench) -> dict[str, Path]:
    folder = bench.folder / "corpus"
    folder.mkdir(exist_ok=True)
    outcomes = run_all([partial(_make_all, folder, names) for names in _families()], bench)
    return {name: Path(path) for outcome in outcomes for name, path in (outcome.value or {}).items()}


def _families() -> list[list[str]]:
    """Names in groups: files derived from each other are together, so that no two processes write the same file."""
    families: dict[str, list[str]] = {}
    for name in CORPUS:
        first = name
        while CORPUS[first].source:
            first = CORPUS[first].source
        families.setdefault(first, []).append(name)
    return list(families.values())


def _make_all(folder: Path, names: list[str]) -> dict[str, str]:
    made = {}
    for name in names:
        try:
            made[name] = str(make(name, folder))
        except LookupError:
            continue
    return made


def write_corpus(bench: Bench) -> tuple[dict[str, Path], list[str]]:
    """Write the corpus into `bench.folder`/corpus; return the files by name, and the names of those not made."""
    made = _made(bench)
    return made, [name for name in CORPUS if name not in made]


def check_exact(bench: Bench) -> Iterator[Row]:
    """R2: the frames sampled from every sound file are those of decoding it from the start."""
    made, missing = write_corpus(bench)
    outcomes = run_all([partial(compare_exactly, path, name) for name, path in made.items()], bench)
    faults = [
        f"{name}: {outcome.value or outcome.message}"
        for name, outcome in zip(made, outcomes, strict=True)
        if outcome.kind != "ok" or outcome.value or outcome.warned
    ]
    yield counted("R2", f"sound files, exact frames ({len(missing)} not made: {', '.join(missing)})", len(made), faults)
    yield Row(
        check="R2", what="files of the corpus", tried=len(CORPUS), target="at least 60 made", got=f"{len(made)} made",
        passed=len(made) >= 60,
    )  # fmt: skip


def compare_exactly(path: Path, name: str, backend: str = "pyav") -> str:
    """Read 1, 5, all and more frames of a sound file; "" if they are right, else what is wrong."""
    truth, entry = sequential(path, name), CORPUS[name]
    shown = entry.num_frames if entry.shown is None else entry.shown or truth.total
    if truth.total != shown:
        return f"FFmpeg shows {truth.total} frames of {shown}"
    for num_frames in (1, 5, shown, shown + 3):
        got = read(path, num_frames, backend)
        if got.total != shown:
            return f"{got.total} frames of {shown}"
        wrong = [
            i
            for i, digest in zip(sample_indices(shown, num_frames), got.frames, strict=True)
            if truth.frames[i] != digest
        ]
        if wrong:
            return f"with {num_frames} frames asked for, other pixels at frames {', '.join(map(str, wrong[:5]))}"
    return ""


def damage(data: bytes, kind: str, rng: random.Random) -> bytes:
    """Cut off the end, zero a piece, flip some bits, or exchange two pieces; the first 64 bytes are kept."""
    changed, size = bytearray(data), len(data)
    if kind == "cut":
        return data[: rng.randrange(64, size)]
    if kind == "hole":
        at = rng.randrange(64, max(65, size - 64))
        length = min(rng.choice([64, 512, 4096]), size - at)
        changed[at : at + length] = bytes(length)
    elif kind == "flips":
        for _ in range(rng.choice([1, 10, 100])):
            changed[rng.randrange(64, size)] ^= 1 << rng.randrange(8)
    else:
        length = min(rng.choice([128, 1024]), size // 4)
        a, b = sorted(rng.randrange(64, size - 2 * length) for _ in range(2))
        b = max(b, a + length)
        changed[a : a + length], changed[b : b + length] = changed[b : b + length], changed[a : a + length]
    return bytes(changed)


def _fuzzed(bench: Bench, sources: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Names of the sources, each with a damaged copy; the same seed and encoders make the same copies."""
    folder = bench.folder / "fuzzed"
    folder.mkdir(exist_ok=True)
    names = list(sources)
    for i in range(_NUM_FUZZED * (5 if bench.full else 1)):
        name, kind = names[i % len(names)], ("cut", "hole", "flips", "swap")[i // len(names) % 4]
        path = folder / f"{i:04d}_{kind}_{name}"
        path.write_bytes(damage(sources[name].read_bytes(), kind, random.Random(bench.seed * 100_003 + i)))
        yield name, path


def write_bad_files(folder: Path, clip: Path) -> dict[str, Path]:
    """Write files that no reader may take for a video; their names say what is wrong. `clip` has its index in front."""
    data, folder = clip.read_bytes(), folder / "bad"
    folder.mkdir(exist_ok=True)
    pictures = data.index(b"mdat") + 4
    noise = random.Random(0).randbytes(3000)
    contents = {
        "empty.mp4": b"", "text.mp4": b"hello\nworld\n" * 99, "page.mp4": b"<html>404 not found</html>" * 9,
        "noise.mp4": noise * 7, "zeros.mp4": bytes(20_000), "picture.mp4": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(99),
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "header_alone.mp4": data[:32], "no_index.mp4": data[:28] + data[pictures - 8 :],
        "cut_at_60_percent.mp4": data[: 6 * len(data) // 10],
        "index_alone.mp4": data[:pictures],
        "noise_in_pictures.mp4": data[: pictures + 900] + noise + data[pictures + 3900 :],
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.mp4").mkdir(exist_ok=True)
    if not (folder / "pipe.mp4").exists():
        os.mkfifo(folder / "pipe.mp4")
    return {name: folder / name for name in (*contents, "folder.mp4", "pipe.mp4", "missing.mp4")}
