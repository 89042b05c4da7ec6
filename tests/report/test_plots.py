"""Pictures of results: stacked bars by their pixels. tests/test_cli_table.py draws the curves."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from tango.errors import TangoError
from tango.report.plots import BAR_COLOURS, stacked_bars

pytest.importorskip("matplotlib")

ROWS = [
    ("all tokens", {"tower": 300.0, "prefill": 500.0}),
    ("pruned", {"tower": 300.0, "prune": 40.0, "prefill": 60.0}),
]


def opened(rows: list[tuple[str, dict[str, float]]], title: str = "A title") -> Image.Image:
    return Image.open(io.BytesIO(stacked_bars(rows, title=title))).convert("RGB")


def bars(rows: list[tuple[str, dict[str, float]]], part: int) -> list[tuple[int, int]]:
    """First column and length of this part's bars, from above; the legend's square is right of all bars."""
    colour = tuple(int(BAR_COLOURS[part][i : i + 2], 16) for i in (1, 3, 5))
    mask = (np.asarray(opened(rows)) == colour).all(axis=-1)
    found: list[tuple[int, int]] = []
    for columns in filter(len, map(np.flatnonzero, mask)):
        run = columns[: np.argmax(np.diff(columns, append=columns[-1] + 2) > 1) + 1]  # the first without a gap
        bar = (int(run[0]), len(run))
        if not any(abs(bar[0] - start) < 3 and abs(bar[1] - length) < 3 for start, length in found[-1:]):
            found.append(bar)
    return found


def test_bars_are_as_long_as_their_parts() -> None:
    legend = 1  # at the height of the first row
    tower, *others = bars(ROWS, 0)
    start, unit = tower[0], tower[1] / 300
    assert len(others) <= legend  # the tower takes equally long in both rows
    prefill = bars(ROWS, 1)
    assert (start + 300 * unit, 500 * unit) == pytest.approx(prefill[0], abs=3)
    assert (start + 340 * unit, 60 * unit) == pytest.approx(prefill[-1], abs=3)
    assert (start + 300 * unit, 40 * unit) == pytest.approx(bars(ROWS, 2)[-1], abs=3)


def test_the_same_numbers_make_the_same_file() -> None:
    first, again = (stacked_bars(ROWS, title="A title") for _ in range(2))
    assert first == again
    assert first.startswith(b"\x89PNG")
    assert stacked_bars(ROWS[::-1], title="A title") != first


def test_a_picture_is_as_wide_as_its_title() -> None:
    short, long = (opened(ROWS, text).width for text in ("a", 300 * "a"))
    assert short < 1600 < 3000 < long


def test_a_title_is_no_formula() -> None:
    assert opened(ROWS, r"$HOME/\frac$").width > 0


def test_rows_without_any_time_are_drawn() -> None:
    assert max((length for _, length in bars([("nothing", {"tower": 0.0})], 0)), default=0) < 60  # the legend alone


@pytest.mark.parametrize("rows", [[], [("many", {str(i): 1.0 for i in range(9)})]])
def test_what_cannot_be_drawn_is_refused(rows: list[tuple[str, dict[str, float]]]) -> None:
    with pytest.raises(ValueError, match="expected rows with at most"):
        stacked_bars(rows, title="")


def test_without_matplotlib_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TangoError, match=r"pip install \"matplotlib>=3\.8\""):
        stacked_bars(ROWS, title="")
