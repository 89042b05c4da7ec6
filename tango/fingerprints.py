"""The content of something as one string: equal for equal content, whatever its name, folder and times.

Every byte counts: a clip may be replaced by another of the same size, copied with its times.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tango.video.addresses import local_path

_ORIENTATION = 0x112  # number of an EXIF tag
_CHECKPOINT = (".json", ".safetensors", ".jinja", ".txt", ".model")
_NOT_FOREIGN = {"tango", "torch"}
_SETTLED_NS = 2_000_000_000  # a file that changed less than this ago may change again without new times
# Parts of the package that change no answer.
_BESIDE_THE_ANSWERS = {"cli.py", "commands", "doctor", "lab", "report", "toy.py"}


def of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, at about 1 GB/s. A file is not read again until it changes.

    A file in the hub's cache is not read: its name is its SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    real = Path(path).resolve(strict=True)
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name
    info = os.stat(real)
    if time.time_ns() - info.st_ctime_ns < _SETTLED_NS:
        return _hashed(str(real))
    # The time of the last change, unlike that of the last modification, cannot be set or copied along.
    return _remembered(str(real), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def of_content(source: Any) -> str:
    """Fingerprint of anything that can be shown as a video: a file, folder of frames, bytes, open file, frames.

    Anything else, and what cannot be read, such as a missing path, is represented by its text.
    """
    if isinstance(source, (str, os.PathLike)):
        return _of_path(os.fsdecode(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _joined("bytes", [bytes(source)])
    if isinstance(source, (list, tuple)):
        return _joined("list", map(of_content, source))
    if isinstance(source, Mapping):
        return _joined(
            "mapping", (part for name, value in sorted(source.items()) for part in (name, of_content(value)))
        )
    if hasattr(source, "read") and hasattr(source, "seek"):
        position = source.tell()
        source.seek(0)
        try:
            return of_content(source.read())
        finally:
            source.seek(position)
    if hasattr(source, "frames") and hasattr(source, "timestamps_s"):  # a tango.Video
        return _joined("video", map(of_content, (source.frames, source.timestamps_s)))
    if hasattr(source, "tobytes") and hasattr(source, "mode"):  # a PIL image
        turned = source.getexif().get(_ORIENTATION)  # reading the image applies it
        return _joined("image", [source.mode, str(source.size), str(turned), source.convert("RGBA").tobytes()])
    if hasattr(source, "untyped_storage"):  # a tensor
        import torch

        about = [str(source.dtype), str(tuple(source.shape))]
        if source.device.type == "meta":  # a shape without values
            return _joined("tensor", about)
        flat = source.detach().cpu().reshape(-1).view(torch.uint8)
        return _joined("tensor", [*about, flat.numpy().tobytes()])
    if hasattr(source, "tobytes") and hasattr(source, "dtype"):  # a NumPy array
        return _joined("array", [str(source.dtype), str(source.shape), source.tobytes()])
    return _joined("text", [str(source)])


def of_checkpoint(folder: Path) -> str:
    """Fingerprint of all that `tango.load` may read from a checkpoint's folder: weights, config, tokenizer, head.

    Raises:
        OSError: a file cannot be read.
    """
    inside = [path for level in (folder, folder / "siglip") if level.is_dir() for path in level.iterdir()]
    files = sorted(path for path in inside if path.suffix in _CHECKPOINT and path.is_file())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(of_file, files))
    names = (path.relative_to(folder).as_posix() for path in files)
    return _joined("checkpoint", (part for pair in zip(names, found, strict=True) for part in pair))


@lru_cache(maxsize=1)
def of_code() -> str:
    """Fingerprint of Tango's own source, as far as answers depend on it: a clone changes under one version."""
    root = Path(__file__).parent
    paths = (path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in _BESIDE_THE_ANSWERS)
    return _joined("code", (part for path in paths for part in (path.relative_to(root).as_posix(), path.read_bytes())))


def of_packages(*things: object) -> dict[str, str]:
    """Fingerprints of the other packages that classes and functions come from, by package; ours is `of_code`."""
    sources = {source.__module__ for thing in things for source in getattr(thing, "__mro__", (thing,))}
    modules = {name.partition(".")[0] for name in sources}
    return {name: _of_package(sys.modules[name]) for name in sorted(modules - sys.stdlib_module_names - _NOT_FOREIGN)}


def _of_package(module: ModuleType) -> str:
    """Fingerprint of all source files of a package, or of a module's one file; code typed in has none."""
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    pairs = [(path, path.relative_to(folder)) for folder in folders for path in sorted(folder.rglob("*.py"))]
    if not folders and (file := getattr(module, "__file__", None)):
        pairs = [(Path(file), Path(module.__name__))]
    return _joined("package", (part for path, name in pairs for part in (name.as_posix(), path.read_bytes())))


def _of_path(text: str) -> str:
    try:
        path = Path(local_path(text))
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            pairs = ((file.relative_to(path).as_posix(), of_file(file)) for file in files)
            return _joined("folder", (part for pair in pairs for part in pair))
        if path.is_file():  # a pipe or a device may have no end
            return of_file(path)
    except (OSError, ValueError):  # an address of another kind; a null byte in the path
        pass
    return _joined("unreadable", [text])


@lru_cache(maxsize=4096)
def _remembered(path: str, *_state: int) -> str:
    return _hashed(path)


def _hashed(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _joined(kind: str, parts: Iterable[str | bytes]) -> str:
    """Fingerprint of several parts. Their lengths count, too: moving bytes from one part to the next changes it."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
