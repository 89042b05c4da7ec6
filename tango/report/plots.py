"""The two pictures of results, drawn by matplotlib: curves of accuracy, and stacked bars of time.

The same numbers give the same bytes on one machine.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tango.errors import TangoError
from tango.report.curves import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the bars. They also differ in brightness and for colour-blind eyes (Okabe and Ito, 2008).
BAR_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#F0E442", "#D55E00", "#009E73", "#CC79A7")
_STYLES = ("-", "--", ":")  # of lines, since there are only ten colours


def accuracy_curves(series: Sequence[Point], *, title: str, form: str) -> bytes:
    """Draw accuracy against visual tokens, one line per method; all tokens are a horizontal line.

    Args:
        form: "png", "svg" or "pdf".
    Raises:
        TangoError: matplotlib is not installed.
    """

    def draw(axes: Axes) -> None:
        for number, method in enumerate(dict.fromkeys(point.method for point in series)):
            line = [point for point in series if point.method == method]
            tokens, accuracy = [point.tokens_percent for point in line], [point.accuracy for point in line]
            if method == "none":
                axes.axhline(accuracy[0], color="0.6", linestyle="--", linewidth=1, label="all tokens", zorder=0)
                continue
            lows = [point.accuracy if point.low is None else point.low for point in line]
            highs = [point.accuracy if point.high is None else point.high for point in line]
            color, style = f"C{number % 10}", _STYLES[number // 10 % len(_STYLES)]
            axes.vlines(tokens, lows, highs, color=color, linewidth=0.6, alpha=0.6)
            axes.plot(tokens, accuracy, f"o{style}", color=color, linewidth=1.2, markersize=4, label=method)
        axes.set(xlabel="visual tokens, % (mean over the LLM's layers)", ylabel="accuracy, %", title=title)
        axes.grid(alpha=0.3)

    return _picture(draw, size=(7, 4.5), form=form)


def stacked_bars(rows: Sequence[tuple[str, Mapping[str, float]]], *, title: str, unit: str = "ms") -> bytes:
    """Draw one horizontal bar per row, made of its parts from left to right, with their sum behind it; a PNG.

    Args:
        rows: label, and size of each part. The legend names the parts in the order in which they first appear.
    Raises:
        ValueError: there are no rows, or more kinds of parts than colours.
        TangoError: matplotlib is not installed.
    """
    parts = list(dict.fromkeys(name for _, sizes in rows for name in sizes))
    if not rows or len(parts) > len(BAR_COLOURS):
        raise ValueError(
            f"expected rows with at most {len(BAR_COLOURS)} parts, got {len(rows)} rows, {len(parts)} parts"
        )

    def draw(axes: Axes) -> None:
        for y, (_, sizes) in enumerate(rows):
            end = 0.0
            for name, size in sizes.items():
                axes.barh(y, size, left=end, color=BAR_COLOURS[parts.index(name)])
                end += size
            axes.annotate(f"{end:.1f} {unit}", (end, y), (4, 0), textcoords="offset points", va="center")
        for name, colour in zip(parts, BAR_COLOURS, strict=False):
            axes.bar(0, 0, color=colour, label=name)  # nothing to see: a line of the legend
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
        axes.margins(x=0.15)  # for the sum behind the longest bar
        axes.set(xlabel=unit, xlim=(0, None))
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_axisbelow(True)
        axes.grid(axis="x", alpha=0.3)

    return _picture(draw, size=(9, 1.5 + 0.4 * len(rows)), form="png")


def _picture(draw: Callable[[Axes], None], *, size: tuple[float, float], form: str) -> bytes:
    """The content of a picture file: axes that `draw` fills, with a legend beside; larger where a text needs it."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TangoError('plots need matplotlib: pip install "matplotlib>=3.8"; the numbers need none') from error
    with matplotlib.rc_context({"svg.hashsalt": "tango", "svg.fonttype": "path", "text.parse_math": False}):
        figure = Figure(figsize=size, dpi=150)
        axes = figure.subplots()
        draw(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        picture = io.BytesIO()
        when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
        figure.savefig(picture, format=form, metadata=when, bbox_inches="tight")
    return picture.getvalue()
