"""Images as frames: open them, turn them upright, convert them to RGB, and check that all have one size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import numpy as np

from tango.errors import VideoReadError
from tango.video.addresses import local_path
from tango.video.sampling import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Endings of the files in a folder that count as its frames; others (Thumbs.db, labels.json) and hidden files do not.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# The formats that are opened, told by a file's contents. Not all that Pillow knows: EPS, for one, starts a program.
_FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")


class Sizes(NamedTuple):
    """How large images may be; see `tango.read_video`."""

    max_frame_pixels: int = 40_000_000
    max_bytes: int = 4 << 30  # of all frames together

    def check(self, width: int, height: int, count: int = 1) -> None:
        """Refuse `count` images of this size before memory for them is taken."""
        if width * height > self.max_frame_pixels:
            got = f"has {width} x {height} = {width * height} pixels, at most {self.max_frame_pixels} fit"
            raise _Refused(f"{got}; raise max_frame_pixels of read_video, or make it smaller")
        if (size := count * width * height * 3) > self.max_bytes:
            got = f"has {width} x {height} pixels: {count} such frames take {size} bytes, at most {self.max_bytes} fit"
            raise _Refused(f"{got}; raise max_bytes of read_video, or take fewer frames")


def read_image(image: object) -> Image:
    """Read an image in any form (path, `file://` address, bytes, Pillow image, uint8 array (h, w, 3)), upright.

    Raises:
        VideoReadError: the image cannot be read, or is none.
    """
    from PIL import Image as images

    return images.fromarray(frame_pixels("<image>" if not _named(image) else str(image), None, image, sizes=Sizes()))


def frame_pixels(path: str, index: int | None, item: object, *, sizes: Sizes, count: int = 1) -> np.ndarray:
    """Read one frame as uint8 (h, w, 3), turned as its EXIF orientation says.

    Args:
        count: how many frames of its size are wanted.
    Raises:
        VideoReadError: about `path`, naming the frame.
    """
    with _about(path, index, item), _opened(item, sizes) as image:
        if image is None:
            return _checked_array(item)
        sizes.check(*image.size, count)
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # `convert` would clip to 255, not scale
            return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
        if upright.mode in ("I", "F"):
            raise _Refused(f"has pixels of mode {upright.mode}, of no fixed range; convert it to 8 bits")
        return np.array(upright.convert("RGB"))


def check_frames(path: str, items: Sequence[object], sizes: Sizes) -> None:
    """Check every frame of a list without decoding it.

    Raises:
        VideoReadError: names the first frame that is no image or differs in size from frame 0.
    """
    first: tuple[int, int] | None = None
    for index, item in enumerate(items):
        with _about(path, index, item), _opened(item, sizes) as image:
            size = _checked_array(item).shape[:2] if image is None else _upright_size(image)
            if first is not None and size != first:
                raise _Refused(f"has {_shown(size)} pixels, the first {_shown(first)}; make them one size")
            first = first or size


def stack_frames(path: str, frame: Callable[[int], np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Stack frames (n, h, w, 3): `frame(i)` is called once and fills every row whose index is i.

    Raises:
        VideoReadError: the frames differ in size.
    """
    frames = np.empty((len(indices), 0, 0, 3), dtype=np.uint8)
    for i in sorted(set(indices.tolist())):
        pixels = frame(i)
        if frames.size == 0:
            frames = np.empty((len(indices), *pixels.shape), dtype=np.uint8)
        if pixels.shape != frames.shape[1:]:
            sizes = f"frame {i} has {_shown(pixels.shape)} pixels, the first {_shown(frames.shape[1:])}"
            raise VideoReadError(path, f"{sizes}; make them one size")
        frames[indices == i] = pixels
    return frames


class _Refused(Exception):
    """A frame is refused; the message is the end of a sentence that begins with the frame's name."""


@contextmanager
def _about(path: str, index: int | None, item: object) -> Iterator[None]:
    """Turn errors inside the block into VideoReadErrors that name the frame."""
    where = "it" if index is None else f"frame {index}"
    if index is not None and _named(item):
        where += f" ({os.path.basename(os.fsdecode(item))!r})"
    try:
        yield
    except VideoReadError:
        raise
    except _Refused as error:
        raise VideoReadError(path, f"{where} {error}") from error
    except FileNotFoundError as error:
        raise VideoReadError(path, f"{where} is not there: no such file; check the path") from error
    except Exception as error:  # on a damaged file, Pillow may raise anything
        reason = f"{where} cannot be read as an image ({one_line(error)})"
        raise VideoReadError(path, f"{reason}; check that it opens, copy it again or convert it") from error


@contextmanager
def _opened(item: object, sizes: Sizes) -> Iterator[Image | None]:
    """Open the Pillow image that an item is or names; None for an array."""
    from PIL import Image as images

    if isinstance(item, images.Image):
        yield _checked_image(item, sizes)
    elif _named(item) or isinstance(item, (bytes, bytearray, memoryview)):
        images.init()
        file = io.BytesIO(item) if isinstance(item, (bytes, bytearray, memoryview)) else local_path(os.fsdecode(item))
        with images.open(file, formats=[name for name in _FORMATS if name in images.OPEN]) as image:
            yield _checked_image(image, sizes)
    else:
        yield None


def _checked_image(image: Image, sizes: Sizes) -> Image:
    sizes.check(*image.size)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _Refused("has several pictures, expected one; convert it to a video file, or save one of them")
    return image


def _checked_array(item: object) -> np.ndarray:
    if not (hasattr(item, "shape") and hasattr(item, "dtype")):
        raise _Refused(f"is of type {type(item).__name__}, expected an image, its path or a uint8 array; convert it")
    shape, dtype = tuple(item.shape), str(item.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 3 or shape[-1] != 3 or 0 in shape:
        raise _Refused(f"is {dtype} of shape {shape}, expected uint8 of shape (h, w, 3); convert it")
    return np.asarray(item.cpu() if hasattr(item, "cpu") else item)


def _upright_size(image: Image) -> tuple[int, int]:
    """Height and width once the image is turned as its EXIF orientation says."""
    width, height = image.size
    return (width, height) if image.getexif().get(0x112, 1) in (5, 6, 7, 8) else (height, width)


def _named(item: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(item, (str, os.PathLike))


def _shown(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
