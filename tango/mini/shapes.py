"""What clips show: shapes, the patterns that fill them, and letters."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
PATTERNS = ("plain", "striped", "barred", "checked", "dotted")
_FONT = {
    "E": "#####,#....,#....,####.,#....,#....,#####", "F": "#####,#....,#....,####.,#....,#....,#....",
    "H": "#...#,#...#,#...#,#####,#...#,#...#,#...#", "K": "#...#,#..#.,#.#..,##...,#.#..,#..#.,#...#",
    "L": "#....,#....,#....,#....,#....,#....,#####", "M": "#...#,##.##,#.#.#,#.#.#,#...#,#...#,#...#",
    "P": "####.,#...#,#...#,####.,#....,#....,#....", "S": ".####,#....,#....,.###.,....#,....#,####.",
    "T": "#####,..#..,..#..,..#..,..#..,..#..,..#..", "U": "#...#,#...#,#...#,#...#,#...#,#...#,.###.",
    "X": "#...#,#...#,.#.#.,..#..,.#.#.,#...#,#...#", "Z": "#####,....#,...#.,..#..,.#...,#....,#####",
}  # fmt: skip
LETTERS = tuple(letter.lower() for letter in _FONT)  # none of a to d, which name options in other benchmarks


def coverage(shape: int, y: np.ndarray, x: np.ndarray, *, softness: float) -> np.ndarray:
    """How much of each point a shape covers, 0 to 1. The shape fills about the unit circle.

    Args:
        softness: width of the soft edge, in the units of `y` and `x`.
    """
    name = SHAPES[shape]
    if name == "circle":
        distance = np.hypot(y, x) - 1
    elif name == "square":
        distance = np.maximum(abs(y), abs(x)) - 0.85
    elif name == "triangle":
        distance = np.maximum(y - 0.8, 0.88 * abs(x) - 0.47 * (y + 1))
    elif name == "cross":
        long, short = np.maximum(abs(y), abs(x)), np.minimum(abs(y), abs(x))
        distance = np.maximum(long - 1, short - 0.33)
    else:
        distance = abs(np.hypot(y, x) - 0.76) - 0.24
    return np.clip(0.5 - distance / softness, 0, 1)


def brightness(pattern: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How bright a patterned surface is at points given in pixels, 0.4 to 1."""
    name = PATTERNS[pattern]
    if name == "plain":
        return np.ones_like(y)
    if name == "striped":
        wave = np.cos(2 * np.pi * y / 6)
    elif name == "barred":
        wave = np.cos(2 * np.pi * x / 6)
    elif name == "checked":
        wave = np.cos(2 * np.pi * y / 9) * np.cos(2 * np.pi * x / 9)
    else:
        wave = 0.5 - (1 + np.cos(2 * np.pi * y / 6)) * (1 + np.cos(2 * np.pi * x / 6)) / 2
    return 0.7 + 0.3 * np.clip(2 * wave, -1, 1)


@lru_cache(maxsize=len(LETTERS))
def letter_mask(letter: int) -> np.ndarray:
    """A letter of 14 x 10 pixels in the middle of 16 x 16, as bool."""
    rows = [[mark == "#" for mark in row] for row in tuple(_FONT.values())[letter].split(",")]
    return np.pad(np.kron(np.array(rows), np.ones((2, 2), bool)), ((1, 1), (3, 3)))
