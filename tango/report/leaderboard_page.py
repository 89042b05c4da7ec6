"""The leaderboard as one HTML file that asks for nothing else: no fonts, scripts or pictures from anywhere.

The rows are in the file, so the page can be read without JavaScript; `data/leaderboard.html` sorts and filters them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

from tango.report.leaderboard import REPORTED, Group, group_of
from tango.report.results import Json

_WIDTH, _HEIGHT = 160, 18  # of a bar, in its own units


class _Column(NamedTuple):
    title: str
    first: str  # the order that the first click asks for
    text: bool = False


_COLUMNS = (
    _Column("Method", "ascending", text=True), _Column("Nominal, %", "ascending"), _Column("Kept, %", "ascending"),
    _Column("Accuracy, % [95 %]", "descending"), _Column("95 % interval", ""), _Column("Right of asked", "descending"),
    _Column("Failed", "descending"), _Column("From", "ascending", text=True),
)  # fmt: skip
_DASH = "&ndash;"


def page(entries: Iterable[Json]) -> str:
    """Render entries, which must be free of mistakes. The same entries give the same text.

    Example:
        >>> from tango.report.leaderboard_paper import paper_entries
        >>> page(paper_entries()).startswith("<!DOCTYPE html>")
        True
    """
    groups: dict[Group, list[Json]] = {}
    for entry in entries:
        groups.setdefault(group_of(entry), []).append(entry)
    ordered = sorted(groups.items(), key=lambda item: _place(*item))
    rows = [entry for _, group in ordered for entry in group]
    parts = {
        "MODELS": _options({row["model"]: row["model"] for row in rows}),
        "BENCHMARKS": _options({row["benchmark"]: row["benchmark"] for row in rows}),
        "RATIOS": _options(
            {f"{r:g}": f"{100 * r:g} %" for r in sorted({row["nominal_ratio"] for row in rows}) if r < 1}
        ),
        "TABLES": "\n".join(_section(i, group, of_group) for i, (group, of_group) in enumerate(ordered)),
    }
    template = (resources.files("tango.report") / "data" / "leaderboard.html").read_text(encoding="utf-8")
    return re.sub("@([A-Z]+)@", lambda word: parts[word[1]], template)  # at once: a row's text may hold such a word


def _place(group: Group, rows: Sequence[Json]) -> tuple[object, ...]:
    """What was measured comes first, then whole sets, then by name."""
    measured = any(not _reported(row) for row in rows)
    return not measured, group.part is not None, *(str(part) for part in group), len(rows)


def _reported(row: Json) -> bool:
    return row["kind"].startswith(REPORTED)


def _options(titles: dict[str, str]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(title)}</option>' for value, title in titles.items())


def _section(number: int, group: Group, rows: list[Json]) -> str:
    rows = sorted(rows, key=lambda row: (row["nominal_ratio"] < 1, row["nominal_ratio"], -row["accuracy"], row["name"]))
    about = [
        "set not stated" if group.set is None else f"set: {group.set}",
        "the whole set" if group.part is None else f"a part: {group.part}",
        "frames not stated" if group.num_frames is None else f"{group.num_frames} frames",
    ]
    clips = {row["num_clips"] for row in rows}
    if len(clips) == 1 and clips != {None}:
        about.append(f"{clips.pop()} clips")
    heads = "".join(_head(column) for column in _COLUMNS)
    ends = [end for row in rows for end in (row["accuracy"], *(row["interval"] or ()))]
    full = [row["accuracy"] for row in rows if row["method"]["method"] == "none"]
    drawn = full[0] if len(full) == 1 else None  # of two, neither is the one that the others compare with
    scale = min(ends), max(ends)
    title = f"{escape(group.benchmark)} &middot; {escape(group.model)}"
    return f"""<section>
<h2 id="group{number}">{title}</h2>
<p class="soft">{escape("; ".join(about))}</p>
<div class="scroll" role="region" aria-labelledby="group{number}" tabindex="0"><table aria-labelledby="group{number}">
<thead><tr>{heads}</tr></thead>
<tbody>
{chr(10).join(_row(row, scale, drawn) for row in rows)}
</tbody></table></div>
</section>"""


def _head(column: _Column) -> str:
    kind = ' class="text"' if column.text else ""
    if not column.first:
        return f'<th scope="col"{kind}>{column.title}</th>'
    button = f'<button type="button">{column.title}</button>'
    return f'<th scope="col"{kind} aria-sort="none" data-first="{column.first}">{button}</th>'


def _row(row: Json, scale: tuple[float, float], full: float | None) -> str:
    accuracy, kept, right, failed = row["accuracy"], row["kept_share"], row["num_correct"], row["num_failed"]
    bracket = "" if row["interval"] is None else " [{:.1f}, {:.1f}]".format(*row["interval"])
    cells = [
        _cell(row["nominal_ratio"], f"{100 * row['nominal_ratio']:g}"),
        _cell(kept, _DASH if kept is None else f"{100 * kept:.1f}"),
        _cell(accuracy, f"{accuracy:.1f}{bracket}"),
        f"<td>{_bar(row, scale, full)}</td>",
        _cell(right, _DASH if right is None else f"{right} of {row['num_asked']}"),
        _cell(failed, _DASH if failed is None else str(failed)),
        _cell(row["kind"], _from(row), text=True),
    ]
    told = {
        "model": row["model"], "benchmark": row["benchmark"], "ratio": f"{row['nominal_ratio']:g}",
        "all": _flag(row["method"]["method"] == "none"), "reported": _flag(_reported(row)),
        "control": _flag(row["control"]),
    }  # fmt: skip
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in told.items())
    badge = ' <span class="badge">control</span>' if row["control"] else ""
    name = "all tokens" if row["method"]["method"] == "none" else row["name"]
    head = f'<th scope="row" data-key="{escape(name)}">{escape(name)}{badge}{_details(row)}</th>'
    grey = ' class="reported"' if _reported(row) else ""
    return f"<tr{grey}{data}>{head}{''.join(cells)}</tr>"


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _cell(key: object, shown: str, *, text: bool = False) -> str:
    """A cell with what it is sorted by; nothing if that is not recorded."""
    kind = ' class="text"' if text else ""
    return f'<td{kind} data-key="{escape("" if key is None else str(key))}">{shown}</td>'


def _from(row: Json) -> str:
    source, who = row["source"], escape(row["source"]["who"])
    if source["link"] is not None:
        who = f'<a href="{escape(source["link"])}" rel="noopener nofollow">{who}</a>'
    return f"{escape(row['kind'])}<br>{who}"


def _details(row: Json) -> str:
    versions = row["versions"] or {}
    told = {
        "method": json.dumps(row["method"], ensure_ascii=False),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "hardware": row["hardware"],
        "date": row["date"],
        "notes": row.get("notes"),
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in told.items() if value)
    return f"<details><summary>details</summary><dl>{items}</dl></details>"


def _bar(row: Json, scale: tuple[float, float], full: float | None) -> str:
    """The interval as a line and the accuracy as a point, all rows of a table on one scale."""
    low, high = scale
    said = f"{row['accuracy']:.1f} %"
    if row["interval"] is not None:
        said += ", 95 % interval {:.1f} to {:.1f} %".format(*row["interval"])

    def x(percent: float) -> str:
        return f"{4 + (_WIDTH - 8) * (percent - low) / (high - low or 1):.1f}"

    middle = _HEIGHT // 2
    lines = f'<line class="axis" x1="0" y1="{middle}" x2="{_WIDTH}" y2="{middle}"/>'
    if full is not None:
        lines += f'<line class="full" x1="{x(full)}" y1="0" x2="{x(full)}" y2="{_HEIGHT}"/>'
    if row["interval"] is not None:
        ends = [x(end) for end in row["interval"]]
        lines += f'<line class="interval" x1="{ends[0]}" y1="{middle}" x2="{ends[1]}" y2="{middle}"/>'
    point = f'<circle class="value" cx="{x(row["accuracy"])}" cy="{middle}" r="4"/>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">{lines}{point}</svg>'
