"""Images as frames: opened, turned upright, RGB, of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tango.errors import VideoReadError
from tango.video.addresses import local_path
from tango.video.sampling import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Files of a folder that count as its frames; others (Thumbs.db, labels.json) and hidden ones are not looked at.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# What is opened, by its contents. Not all that Pillow knows: EPS, for one, would start another program.
_FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")


class Sizes(NamedTuple):
    """How large images may be; see `tango.read_video`."""

    max_frame_pixels: int = 40_000_000
    max_bytes: int = 4 << 30  # of all frames together

    def check(self, width: int, height: int, count: int = 1) -> None:
        """Refuse before memory is taken."""
        if width * height > self.max_frame_pixels:
            got = f"has {width} x {height} = {width * height} pixels, at most {self.max_frame_pixels} fit"
            raise _Refused(f"{got}; raise max_frame_pixels of read_video, or make it smaller")
        if (size := count * width * height * 3) > self.max_bytes:
            got = f"has {width} x {height} pixels: {count} such frames take {size} bytes, at most {self.max_bytes} fit"
            raise _Refused(f"{got}; raise max_bytes of read_video, or take fewer frames")


def read_image(image: Any) -> Image:
    """An image in any form (a path, a `file://` address, its bytes, a Pillow image, a uint8 array (h, w, 3)), upright.

    Raises:
        VideoReadError: it cannot be read, or is no image.
    """
    from PIL import Image as images

    return images.fromarray(frame_pixels("<image>" if not _named(image) else str(image), None, image, sizes=Sizes()))


def frame_pixels(path: str, index: int | None, item: Any, *, sizes: Sizes, count: int = 1) -> np.ndarray:
    """One frame as uint8 (h, w, 3), turned as its EXIF orientation says.

    Args:
        count: so many of its size are wanted.

    Raises:
        VideoReadError: about `path`, naming the frame.
    """
    with _about(path, index, item), _opened(item, sizes) as image:
        if image is None:
            return _checked_array(item)
        sizes.check(*image.size, count)
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # conversion would cut, not scale
            return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
        if upright.mode in ("I", "F"):
            raise _Refused(f"has pixels of mode {upright.mode}, of no fixed range; convert it to 8 bits")
        return np.array(upright.convert("RGB"))


def check_frames(path: str, items: Sequence[Any], sizes: Sizes) -> None:
    """Look at every frame of a list without decoding it.

    Raises:
        VideoReadError: naming the first that is no image, or not of the first one's size.
    """
    first: tuple[int, int] | None = None
    for index, item in enumerate(items):
        with _about(path, index, item), _opened(item, sizes) as image:
            size = _checked_array(item).shape[:2] if image is None else _upright_size(image)
            if first is not None and size != first:
                raise _Refused(f"has {_shown(size)} pixels, the first {_shown(first)}; make them one size")
            first = first or size


def stack_frames(path: str, frame: Callable[[int], np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Frames (n, h, w, 3), of which `frame(i)` fills every place that asks for it.

    Raises:
        VideoReadError: their sizes differ.
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
    """What is wrong with a frame, as the end of a sentence that begins with its name."""


@contextmanager
def _about(path: str, index: int | None, item: Any) -> Iterator[None]:
    """Errors inside the block become errors about this frame."""
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
    except Exception as error:  # of a damaged file Pillow raises whatever it stumbles over
        reason = f"{where} cannot be read as an image ({one_line(error)})"
        raise VideoReadError(path, f"{reason}; check that it opens, copy it again or convert it") from error


@contextmanager
def _opened(item: Any, sizes: Sizes) -> Iterator[Image | None]:
    """The Pillow image that an item is or names; None for an array."""
    if hasattr(item, "convert"):
        yield _checked_image(item, sizes)
    elif _named(item) or isinstance(item, (bytes, bytearray, memoryview)):
        from PIL import Image as images

        images.init()
        file = local_path(os.fsdecode(item)) if _named(item) else io.BytesIO(item)
        with images.open(file, formats=[name for name in _FORMATS if name in images.OPEN]) as image:
            yield _checked_image(image, sizes)
    else:
        yield None


def _checked_image(image: Image, sizes: Sizes) -> Image:
    sizes.check(*image.size)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _Refused("has several pictures, expected one; convert it to a video file, or save one of them")
    return image


def _checked_array(item: Any) -> np.ndarray:
    if not hasattr(item, "shape"):
        raise _Refused(f"is of type {type(item).__name__}, expected an image, its path or a uint8 array; convert it")
    shape, dtype = tuple(item.shape), str(item.dtype).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 3 or shape[-1] != 3 or 0 in shape:
        raise _Refused(f"is {dtype} of shape {shape}, expected uint8 of shape (h, w, 3); convert it")
    return np.asarray(item.cpu() if hasattr(item, "cpu") else item)


def _upright_size(image: Image) -> tuple[int, int]:
    """Height and width after turning by the EXIF orientation."""
    width, height = image.size
    return (width, height) if image.getexif().get(0x112, 1) in (5, 6, 7, 8) else (height, width)


def _named(item: object) -> bool:
    return isinstance(item, (str, os.PathLike))


def _shown(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
