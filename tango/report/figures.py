"""Pictures of what a method keeps: all sampled frames on one sheet. The same input gives the same pixels."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

DROPPED, MERGED, KEPT = 0, 1, 2  # what became of a token
# For each of these: the weight of a pixel's own colour, in 255ths, and the colour that it is mixed with.
_SHADES = np.array([[45, 70, 70, 70], [110, 30, 70, 150], [255, 0, 0, 0]], dtype=np.uint16)
_TILE, _GAP, _TEXT = 192, 6, 14  # in pixels: longer side of a frame, gap between frames, height of letters
_BACKGROUND, _INK = (24, 24, 24), (235, 235, 235)


def thumbnails(frames: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize frames (F, h, w, 3) to their size on the sheet, with at least one pixel for every token of the grid."""
    h, w = frames.shape[1:3]
    scale = _TILE / max(h, w)
    size = max(grid[1], round(w * scale)), max(grid[0], round(h * scale))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in frames])


def shade(tile: NDArray[np.uint8], states: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Dim those positions of a frame (h, w, 3) whose tokens (H, W) are not kept.

    The grid covers the whole frame. (A tower that discards its last row of patches sees a little less.)
    """
    h, w = tile.shape[:2]
    H, W = states.shape
    rows, columns = np.arange(h) * H // h, np.arange(w) * W // w  # the token's row and column of each pixel
    shades = _SHADES[states[rows[:, None], columns]]
    weight, colour = shades[..., :1], shades[..., 1:]
    return ((tile * weight + colour * (255 - weight)) // 255).astype(np.uint8)


def contact_sheet(
    tiles: NDArray[np.uint8], states: NDArray[np.uint8], labels: Sequence[str], caption: Sequence[str]
) -> Image.Image:
    """Draw all frames in a grid, with a label below each and the caption on top.

    Args:
        tiles: frames (F, h, w, 3), from `thumbnails`.
        states: DROPPED, MERGED or KEPT, for each token of each frame (F, H, W).
    """
    F, h, w, _ = tiles.shape
    font = ImageFont.load_default(size=_TEXT)
    line = _TEXT + 4
    num_columns = math.ceil(math.sqrt(F))
    num_rows = math.ceil(F / num_columns)
    top = _GAP + line * len(caption)
    width = max(num_columns * (w + _GAP), *(math.ceil(font.getlength(text)) + _GAP for text in caption)) + _GAP
    sheet = Image.new("RGB", (width, top + num_rows * (h + line + _GAP)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(caption):
        draw.text((_GAP, _GAP + i * line), text, fill=_INK, font=font)
    for i, (tile, state, label) in enumerate(zip(tiles, states, labels, strict=True)):
        x, y = _GAP + (i % num_columns) * (w + _GAP), top + (i // num_columns) * (h + line + _GAP)
        sheet.paste(Image.fromarray(shade(tile, state)), (x, y))
        draw.text((x, y + h), label, fill=_INK, font=font)
    return sheet


def png(image: Image.Image) -> bytes:
    """Encode the picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
