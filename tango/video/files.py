"""What a file's kind, size and first bytes tell before any decoder opens it."""

from __future__ import annotations

import os
import re
import stat

from tango.errors import VideoReadError
from tango.video.sampling import one_line

_IMAGE = rb"\x89PNG|\xff\xd8\xff|II\*\0|MM\0\*|BM....\0\0\0\0|RIFF....WEBP|....ftyp(avif|heic|heix|mif1)"
_BINARY = set(range(32)) - set(b"\t\n\r\f\x1b")  # bytes that no text file has


def check_file(path: str) -> None:
    """Refuse what is not a complete, regular file that may be a video."""
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
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise VideoReadError(path, "it is a git-lfs pointer, not the video itself; install git-lfs, run: git lfs pull")
    if not set(head) & _BINARY and not head.startswith(b"YUV4MPEG2 "):
        raise VideoReadError(path, "it is text (a playlist, a web page?), expected a video file; name the video itself")
    if (stated := _stated_size(head)) > info.st_size:
        raise VideoReadError(path, f"it is cut short: {info.st_size} of {stated} bytes; download or copy it again")
    if _ends_within_a_packet(path, head, info.st_size):
        raise VideoReadError(path, "it is cut short: its last packet is not complete; download or copy it again")


def _stated_size(head: bytes) -> int:
    """Read from its header how many bytes a Matroska/WebM or AVI file must have at least; 0 where it does not say.

    FFmpeg's demuxers of these formats stop without an error where the data end.
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


def _ends_within_a_packet(path: str, head: bytes, size: int) -> bool:
    """Whether an MPEG-TS or Ogg file ends in the middle of a packet or page; FFmpeg's demuxers do not report that."""
    for period, sync in ((188, 0), (192, 4)):  # MPEG-TS; the same with a time before each packet (Blu-ray, cameras)
        if head[sync::period].startswith(b"G" * 8):
            return size % period > 0
    if not head.startswith(b"OggS"):
        return False
    with open(path, "rb") as file:
        file.seek(max(0, size - (1 << 17)))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]  # at most 65307 bytes (RFC 3533)
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
