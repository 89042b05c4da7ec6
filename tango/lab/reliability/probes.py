"""R9: inputs made to read other files, contact other machines, run code, or take all memory."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from tango import mini
from tango.errors import TangoError
from tango.lab.reliability.corpus import make
from tango.lab.reliability.workers import Bench, Outcome, Row, alone, counted
from tango.processes import resident_bytes
from tango.video.reading import read_video

_MEMORY_MB = 300  # by which reading a hostile file may grow the process


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """Listen on a port of this machine; yield it, and the list of connections made to it so far."""
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        over = threading.Event()

        def accept() -> None:
            while not over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    seen.append(connection.recv(200).decode(errors="replace").partition("\n")[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1], seen
            time.sleep(0.5)  # for connections on their way
        finally:
            over.set()
            thread.join()


def peak(job: Callable[[], tuple[str, object]]) -> tuple[tuple[str, object], float]:
    """What a job returns, or its error in words, and by how many MB the peak memory of the process grew."""
    before = resident_bytes(peak=True)
    try:
        value = job()
    except TangoError as error:
        value = ("refused", str(error))
    except Exception as error:
        value = ("crash", f"{type(error).__name__}: {error}")
    return value, (resident_bytes(peak=True) - before) / 1e6


def take(path: str, num_frames: int = 16) -> tuple[str, list[int]]:
    """Read a video; return "read" with its shape and mean colour."""
    video = read_video(path, num_frames=num_frames)
    return "read", [*video.frames.shape, round(float(video.frames.float().mean()))]


def addresses(port: int) -> dict[str, str]:
    """Names that lead elsewhere, as a user might receive them."""
    up = "../" * 20
    return {
        "/etc/passwd": "/etc/passwd", "file:///etc/passwd": "file:///etc/passwd",
        "../ to /etc/passwd": f"{up}etc/passwd",
        "http loopback": f"http://127.0.0.1:{port}/a.mp4", "http by name": f"http://localhost:{port}/a.mp4",
        "http metadata service": "http://169.254.169.254/latest/meta-data/", "tcp": f"tcp://127.0.0.1:{port}",
        "rtsp": f"rtsp://127.0.0.1:{port}/a", "rtmp": f"rtmp://127.0.0.1:{port}/a", "ftp": f"ftp://127.0.0.1:{port}/a.mp4",
        "hls": f"hls+http://127.0.0.1:{port}/a.m3u8", "concat": f"concat:http://127.0.0.1:{port}/a.ts|/etc/passwd",
        "crypto": f"crypto+http://127.0.0.1:{port}/a", "subfile": f"subfile,,start,0,end,9,,:http://127.0.0.1:{port}/a",
        "async": f"async:http://127.0.0.1:{port}/a", "cache": f"cache:http://127.0.0.1:{port}/a", "pipe": "pipe:0",
        "data address": "data:video/mp4;base64,AAAA", "device": "/dev/zero", "udp": f"udp://127.0.0.1:{port}",
    }  # fmt: skip


def pointing_files(folder: Path, port: int, clip: Path) -> dict[str, Path]:
    """Files whose content points elsewhere: playlists, session descriptions, references."""
    http = f"http://127.0.0.1:{port}/a.ts"
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        f'<Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{http}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    texts = {
        "http.m3u8": hls.format(http), "http.mp4": hls.format(http), "passwd.m3u8": hls.format("file:///etc/passwd"),
        "metadata.m3u8": hls.format("http://169.254.169.254/latest"),
        "list.ffconcat": f"ffconcat version 1.0\nfile '{http}'\n",
        "other.ffconcat": f"ffconcat version 1.0\nfile '{clip}'\n", "stream.sdp": sdp,
        "list.mpd": dash, "list.asx": f'<asx version="3.0"><entry><ref href="{http}"/></entry></asx>',
        "list.pls": f"[playlist]\nFile1={http}\nNumberOfEntries=1\n", "a.ram": http + "\n",
        "picture.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{http}"/></svg>',
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        binary = folder / f"binary_{name}"  # with a NUL byte, it does not look like text
        binary.write_bytes(text.encode() + b"\n#\0\1\2")
    files = {name: folder / name for text in texts for name in (text, f"binary_{text}")}
    for name, target in (("alias_file.mov", str(clip)), ("alias_http.mov", http)):
        files[name] = folder / name
        files[name].write_bytes(with_alias(clip.read_bytes(), target))
    return files


def with_alias(data: bytes, target: str) -> bytes:
    """A mov or mp4 (index last) changed to say that its pictures are in another file: a Macintosh alias in `dref`."""
    path = target.encode()
    record = bytes(10) + b"\0" + bytes(27) + bytes(12) + b"\0" + bytes(63) + bytes(16) + bytes(4) + bytes(16)
    record += struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">hH", -1, 0)
    alias = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    at = data.index(b"dref") - 4
    (size,) = struct.unpack(">I", data[at : at + 4])
    dref = struct.pack(">I4sII", 16 + len(alias), b"dref", 0, 1) + alias
    changed = bytearray(data[:at] + dref + data[at + size :])
    for kind in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):  # the boxes around it grow
        start = changed.rindex(kind, 0, at + 4) - 4
        (old,) = struct.unpack(">I", changed[start : start + 4])
        changed[start : start + 4] = struct.pack(">I", old + len(dref) - size)
    return bytes(changed)


def large_files(folder: Path, clip: Path, *, full: bool) -> dict[str, Path]:
    """Small or sparse files whose contents are enormous."""
    import av

    sparse, tail = folder / "sparse.mp4", folder / "sparse_tail.mp4"
    sparse.touch()
    tail.write_bytes(clip.read_bytes())
    for path in (sparse, tail):
        with path.open("r+b") as file:
            file.truncate(300 << 20)
    bomb = folder / "pixels.mkv"
    with av.open(str(bomb), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width = stream.height = 8000
        stream.pix_fmt = "gray"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((8000, 8000), np.uint8), format="gray")))
        container.mux(stream.encode(None))
    long = folder / "ten_hours.mp4"
    with av.open(str(long), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        stream.codec_context.gop_size = 250
        for i in range(36_000 if full else 36_000 // 4):  # one or four seconds each
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = i if full else 4 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {"300 MB of nothing": sparse, "300 MB behind a clip": tail, "8000 x 8000 pixels": bomb, "ten hours": long}


def shell_probes(folder: Path, clip: Path) -> dict[str, list[str]]:
    """Commands with files made to run code or take all memory; each must end with exit code 2 and one line."""
    answer = ["answer", str(clip), "what", "--offline", "--max-new-tokens", "2", "--model"]
    mark = folder / "EXECUTED"
    pickled, remote = _checkpoint(folder / "pickled"), _checkpoint(folder / "remote")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    (remote / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Any: pass\n", encoding="utf-8")
    config = json.loads((remote / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoConfig": "code.Any", "AutoModel": "code.Any"}, "model_type": "unheard-of"}
    (remote / "config.json").write_text(json.dumps(config), encoding="utf-8")
    deep = {
        "deep.yaml": "[" * 20_000,
        "a_records.jsonl": '{"a":' * 50_000 + "\n",
        "code.yaml": "method: !!python/object/apply:os.system [ls]\n",
    }
    for name, text in deep.items():
        (folder / name).write_text(text, encoding="utf-8")
    nested = _checkpoint(folder / "nested")
    (nested / "config.json").write_text('{"a":' * 50_000, encoding="utf-8")
    return {
        "pickled checkpoint": [*answer, str(pickled)],
        "checkpoint with code": [*answer, str(remote)],
        "checkpoint with deep JSON": [*answer, str(nested)],
        "deep YAML": [*answer, mini.NAME, "--config", str(folder / "deep.yaml")],
        "YAML with code": [*answer, mini.NAME, "--config", str(folder / "code.yaml")],
        "deep JSON of records": ["runs", "--results", str(folder / "a_records.jsonl")],
    }


def _checkpoint(folder: Path) -> Path:
    return shutil.copytree(mini.folder(), folder, dirs_exist_ok=True)


def check_probes(bench: Bench) -> Iterator[Row]:
    """R9: addresses, files that point elsewhere, enormous files, and checkpoints and settings with code."""
    folder = bench.folder / "probes"
    folder.mkdir(exist_ok=True)
    clip = make("h264.mov", folder)
    with listening() as (port, seen):
        elsewhere = {**addresses(port), **{n: str(p) for n, p in pointing_files(folder, port, clip).items()}}
        outcomes = {name: alone(partial(peak, partial(take, path)), bench) for name, path in elsewhere.items()}
    yield counted(
        "R9", "addresses, and files that point elsewhere: not refused by name", len(elsewhere), faults_of(outcomes)
    )
    yield counted("R9", "connections that these made", len(elsewhere), seen, noun="connections")
    large = large_files(folder, clip, full=bench.full)
    outcomes = {name: alone(partial(peak, partial(take, str(path))), bench) for name, path in large.items()}
    may_read = ("300 MB behind a clip", "ten hours")
    yield counted("R9", "enormous files: not refused by name", len(outcomes), faults_of(outcomes, may_read))
    sizes = {name: outcome.value[1] for name, outcome in outcomes.items() if outcome.kind == "ok"}
    greedy = [f"{name}: {size:.0f} MB" for name, size in sizes.items() if size > _MEMORY_MB]
    yield counted("R9", f"enormous files: more than {_MEMORY_MB} MB taken", len(outcomes), greedy)
    commands = shell_probes(folder, clip)
    broken = [f"{name}: {fault}" for name, command in commands.items() if (fault := one_line(command))]
    yield counted(
        "R9", "checkpoints and settings with code or without end: not exit code 2 and one line", len(commands), broken
    )
    ran = ["a file of the probe's was executed"] if (folder / "EXECUTED").exists() else []
    yield counted("R9", "code that these ran", len(commands), ran)


def faults_of(outcomes: dict[str, Outcome], may_read: Sequence[str] = ()) -> list[str]:
    """Names of inputs that were neither refused with a typed error nor, if in `may_read`, read."""
    faults = []
    for name, outcome in outcomes.items():
        kind, what = outcome.value[0] if outcome.kind == "ok" else (outcome.kind, outcome.message)
        if kind != "refused" and not (kind == "read" and name in may_read):
            faults.append(f"{name}: {kind} {what}"[:200])
    return faults


def one_line(command: Sequence[str]) -> str:
    """Run a command of Tango's with "y" on its standard input; "" if it ends with 2 and one line of error."""
    run = subprocess.run(
        [sys.executable, "-m", "tango.cli", *command], input="y\n" * 9, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in run.stderr.splitlines() if line.strip() and not line.startswith("tango: note:")]
    if run.returncode == 2 and len(lines) == 1 and "[y/N]" not in run.stdout + run.stderr:
        return ""
    return f"exit code {run.returncode}, {len(lines)} lines, the last: {(lines or ['-'])[-1][:120]}"
