"""Names of video files and images: paths, and addresses that stand for one."""

from __future__ import annotations

import os
import re
from typing import BinaryIO, TypeGuard
from urllib.parse import unquote_to_bytes

from tango.errors import VideoReadError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")


def is_file(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is the name of a file, which need not exist; folders, addresses and data in memory are not."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    path = os.fsdecode(source)
    return not os.path.isdir(path) and (os.path.lexists(path) or not _ADDRESS.match(path))


def is_stream(source: object) -> TypeGuard[bytes | bytearray | memoryview | BinaryIO]:
    """Whether a source is the contents of a file: bytes, or a file object."""
    return isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")


def has_times(source: object) -> bool:
    """Whether a source says when its frames are shown: files and folders do, frames in memory and lists do not."""
    return isinstance(source, (str, os.PathLike)) or is_stream(source)


def local_path(address: str) -> str:
    """The path that a `file://` address names; text that is no address is returned unchanged.

    Raises:
        VideoReadError: the address is of another kind, or names another machine.
    """
    if os.path.lexists(address) or not _ADDRESS.match(address):
        return address
    scheme, _, rest = address.partition(":")
    if scheme.lower() == "data":
        raise VideoReadError(f"{address[:40]}...", "it is a data: address; decode it (base64) and pass the bytes")
    if scheme.lower() != "file":
        raise VideoReadError(address, f"no such file; {scheme}: is an address, download it first and name the file")
    host, slash, path = rest.removeprefix("//").partition("/") if rest.startswith("//") else ("", "/", rest.lstrip("/"))
    if host.lower() not in ("", "localhost"):
        reason = f"it is on another machine ({host!r}), or the path is not absolute"
        raise VideoReadError(address, f"{reason}; name a file here, as in file:///folder/clip.mp4")
    raw = slash + path
    decoded = os.fsdecode(unquote_to_bytes(raw.encode(errors="surrogateescape")))
    return raw if os.path.lexists(raw) and not os.path.lexists(decoded) else decoded
