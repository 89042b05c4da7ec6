"""Stacked bars, by their pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tango.report.bars import _COLOURS, stacked_bars

ROWS = [
    ("all tokens", {"tower": 300.0, "prefill": 500.0}),
    ("pruned", {"tower": 300.0, "prune": 40.0, "prefill": 60.0}),
]


def pixels(rows: list[tuple[str, dict[str, float]]]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(stacked_bars(rows, title=["A title"]))))


def runs(picture: np.ndarray, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """First column and length of this colour in the rows of pixels where it is widest apart from the legend."""
    found = []
    mask = (picture == colour).all(axis=-1)
    for line in mask[60:]:  # below title and legend
        columns = np.flatnonzero(line)
        if len(columns) > 14:
            run = (int(columns[0]), int(columns[-1] - columns[0] + 1))
            if not found or found[-1] != run:
                found.append(run)
    return found


def test_bars_are_as_long_as_their_parts() -> None:
    picture = pixels(ROWS)
    (start, tower), *rest = runs(picture, _COLOURS[0])
    assert rest == []  # the tower takes equally long in both rows
    assert tower == 640 * 300 / 800
    assert runs(picture, _COLOURS[1]) == [(start + 240, 400), (start + 240 + 32, 48)]
    assert runs(picture, _COLOURS[2]) == [(start + 240, 32)]


def test_the_same_numbers_make_the_same_file() -> None:
    first, again = (stacked_bars(ROWS, title=["A title"]) for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")
    assert stacked_bars(ROWS[::-1], title=["A title"]) != first


def test_a_picture_is_as_wide_as_its_title() -> None:
    short, long = (Image.open(io.BytesIO(stacked_bars(ROWS, title=[text]))).width for text in ("a", 300 * "a"))
    assert short < 1000 < 1500 < long


def test_rows_without_any_time_are_drawn() -> None:
    assert runs(pixels([("nothing", {"tower": 0.0})]), _COLOURS[0]) == []


@pytest.mark.parametrize("rows", [[], [("many", {str(i): 1.0 for i in range(9)})]])
def test_what_cannot_be_drawn_is_refused(rows: list[tuple[str, dict[str, float]]]) -> None:
    with pytest.raises(ValueError, match="expected rows with at most"):
        stacked_bars(rows, title=[])
