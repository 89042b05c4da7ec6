"""Stacked bars: how long each stage takes, a bar per row; pixels the same for the same numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

# Colours that also differ in brightness and for colour-blind eyes (those of Okabe and Ito, 2008).
_COLOURS = ((0, 114, 178), (86, 180, 233), (230, 159, 0), (240, 228, 66), (213, 94, 0), (0, 158, 115), (204, 121, 167))
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_BACKGROUND, _INK, _RULE = (255, 255, 255), (30, 30, 30), (215, 215, 215)
_TEXT, _BAR, _GAP, _WIDTH = 14, 22, 10, 640  # pixels: height of letters and bars, between things, length of the axis


def stacked_bars(rows: Sequence[tuple[str, Mapping[str, float]]], *, title: Sequence[str], unit: str = "ms") -> bytes:
    """A PNG with one horizontal bar per row, cut into its parts from left to right, with the sum behind it.

    Args:
        rows: label, and size of each part; parts are named in a legend, in the order in which they first appear.
        title: lines above the bars.
    Raises:
        ValueError: there are no rows, or more kinds of parts than colours.
    """
    parts = list(dict.fromkeys(name for _, sizes in rows for name in sizes))
    if not rows or len(parts) > len(_COLOURS):
        raise ValueError(f"expected rows with at most {len(_COLOURS)} parts, got {len(rows)} rows, {len(parts)} parts")
    colours = dict(zip(parts, _COLOURS, strict=False))
    font = ImageFont.load_default(size=_TEXT)
    line = _TEXT + 6
    left = _GAP + max(math.ceil(font.getlength(label)) for label, _ in rows) + _GAP
    longest = max(sum(sizes.values()) for _, sizes in rows) or 1.0
    step = _step(longest)
    totals = [f"{sum(sizes.values()):.1f} {unit}" for _, sizes in rows]
    right = left + _WIDTH + _GAP + max(math.ceil(font.getlength(text)) for text in totals) + _GAP
    width = max([right, *(_GAP + math.ceil(font.getlength(text)) + _GAP for text in title)])
    top = _GAP + line * (len(title) + 1) + _GAP
    bottom = top + len(rows) * (_BAR + _GAP)
    image = Image.new("RGB", (width, bottom + line + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(title):
        draw.text((_GAP, _GAP + i * line), text, fill=_INK, font=font)
    _draw_legend(draw, font, colours, y=_GAP + len(title) * line)
    for i in range(math.floor(longest / step) + 1):
        x = left + round(i * step / longest * _WIDTH)
        draw.line([(x, top), (x, bottom)], fill=_RULE)
        draw.text((x, bottom), f"{i * step:g}", fill=_INK, font=font)
    for i, ((label, sizes), total) in enumerate(zip(rows, totals, strict=True)):
        y, done = top + i * (_BAR + _GAP), 0.0
        draw.text((_GAP, y + 2), label, fill=_INK, font=font)
        for name, size in sizes.items():
            start, end = (left + round(at / longest * _WIDTH) for at in (done, done + size))
            if end > start:
                draw.rectangle([start, y, end - 1, y + _BAR - 1], fill=colours[name])
            done += size
        draw.text((left + round(done / longest * _WIDTH) + _GAP, y + 2), total, fill=_INK, font=font)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _draw_legend(draw: ImageDraw.ImageDraw, font: _Font, colours: Mapping[str, tuple], y: int) -> None:
    x = _GAP
    for name, colour in colours.items():
        draw.rectangle([x, y + 3, x + _TEXT - 1, y + 3 + _TEXT - 1], fill=colour)
        draw.text((x + _TEXT + 4, y), name, fill=_INK, font=font)
        x += _TEXT + 4 + math.ceil(font.getlength(name)) + 2 * _GAP


def _step(longest: float) -> float:
    """A round distance of marks on the axis, of which four to ten fit."""
    power = 10.0 ** math.floor(math.log10(longest))
    return next(power * part for part in (1, 0.5, 0.2, 0.1) if longest / (power * part) >= 4)
