"""Tables of results as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from tango.report.intervals import Estimate
from tango.report.tables import Cell, Table, TableRow
from tango.report.text import markdown as markdown_table

_HEADERS = {"average": "Avg.", "performance": "Perf."}


def markdown(table: Table) -> str:
    """Render for people: lines per method for ours, the paper's, its own paper's, and what it is compared with."""
    columns = table.experiment.columns
    rows = [["method", "ratio", "kept", "", *(_HEADERS.get(column, column) for column in columns)]]
    section: object = object()
    for row in table.rows:
        if (heading := _heading(table, row)) != section and heading:
            rows.append([f"**{heading}**", *[""] * (len(columns) + 3)])
        section = heading
        rows += _lines(table, row)
    notes = "\n".join(f"- {note}" for note in _notes(table))
    title = f"**{table.experiment.heading}: {table.experiment.title}**"
    return f"{title}\n\n{markdown_table(rows)}\n\n{notes}\n"


def latex(table: Table) -> str:
    """Render as a `tabular` for the package booktabs, with the notes as comments below it."""
    columns = table.experiment.columns
    lines = [
        f"% {table.experiment.heading}: {table.experiment.title}",
        f"\\begin{{tabular}}{{lrrl{'r' * len(columns)}}}",
        "\\toprule",
        _latex_row(["method", "ratio", "kept", "", *(_HEADERS.get(column, column) for column in columns)]),
    ]
    section: object = object()
    for row in table.rows:
        if (heading := _heading(table, row)) != section:
            lines.append("\\midrule")
            if heading:
                lines.append(f"\\multicolumn{{{len(columns) + 4}}}{{l}}{{\\textit{{{_escaped(heading)}}}}} \\\\")
        section = heading
        lines += [_latex_row(cells) for cells in _lines(table, row)]
    lines += ["\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in _notes(table))]
    return "\n".join(lines) + "\n"


def csv_text(table: Table) -> str:
    """Render for programs: one line per method and column, in full precision; a cell without a number is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["table", "model", "section", "method", "retention_ratio", "kept_percent", "column", "ours", "low", "high",
         "num_questions", "num_clips", "num_failed", "partial", "paper", "difference", "authors", "against",
         "against_low", "against_high", "against_num_questions"]
    )  # fmt: skip
    for row in table.rows:
        start: list[str | float | None] = [table.experiment.table, row.row.model, row.row.section, row.row.name]
        start += [row.row.settings.get("retention_ratio", 1.0), None if row.kept is None else round(row.kept, 6)]
        for column, cell in row.cells.items():
            low, high = _interval(cell.ours)
            counts: list[int | None] = [None, None, None]
            if cell.ours is not None:
                counts = [cell.ours.num_questions, cell.ours.num_clips, cell.num_failed]
            compared = [None if cell.against is None else cell.against.value, *_interval(cell.against)]
            compared.append(None if cell.against is None else cell.against.num_questions)
            ours = None if cell.ours is None else cell.ours.value
            numbers = [ours, low, high, *counts, int(cell.partial), cell.published, cell.difference]
            numbers += [row.row.authors.get(column), *compared]
            writer.writerow([*start, column, *(round(n, 6) if isinstance(n, float) else n for n in numbers)])
    return text.getvalue()


RENDERERS = {"markdown": markdown, "csv": csv_text, "latex": latex}


def _heading(table: Table, row: TableRow) -> str:
    several = len(table.experiment.papers_models) > 1
    return ", ".join(part for part in (row.row.model if several else None, row.row.section) if part)


def _lines(table: Table, row: TableRow) -> Iterator[list[str]]:
    kept = "-" if row.kept is None else f"{row.kept:.1f}"
    yield [row.row.name, f"{row.nominal:g}", kept, "ours", *(_ours(cell) for cell in row.cells.values())]
    empty = [""] * 3
    if row.row.published:
        yield [*empty, "paper", *(_papers(cell) for cell in row.cells.values())]
    if row.row.authors:
        authors = (row.row.authors.get(column) for column in row.cells)
        yield [*empty, "authors", *("-" if number is None else f"{number:.1f}" for number in authors)]
    if any(cell.against for cell in row.cells.values()):
        yield [*empty, f"minus {table.against}", *(_signed(cell.against) for cell in row.cells.values())]


def _ours(cell: Cell) -> str:
    if cell.ours is None:
        return "-"
    mark = ("*" if cell.partial else "") + ("!" if cell.num_failed else "")
    return f"{cell.ours.value:.1f}{mark}{_bracket(cell.ours, '.1f')} n={cell.ours.num_questions}"


def _papers(cell: Cell) -> str:
    if cell.published is None:
        return "-"
    difference = cell.difference
    return f"{cell.published:.1f}" + ("" if difference is None else f" ({difference:+.1f})")


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate.value:+.1f}{_bracket(estimate, '+.1f')} n={estimate.num_questions}"


def _bracket(estimate: Estimate, form: str) -> str:
    low, high = _interval(estimate)
    return "" if low is None else f" [{low:{form}}, {high:{form}}]"


def _interval(estimate: Estimate | None) -> tuple[float, float] | tuple[None, None]:
    return (estimate.interval() if estimate is not None else None) or (None, None)


def _legend(table: Table) -> Iterator[str]:
    yield "ratio: percent of the visual tokens asked for, in the mean over the LLM's layers; kept: what was left"
    yield "ours: percent [95 % interval over clips] n questions"
    if any(row.row.published for row in table.rows):
        yield "paper: percent (ours minus it), measured by the authors of arXiv:2604.09547 for all methods"
    if any(row.row.authors for row in table.rows):
        yield "authors: percent, from the method's own paper"
    yield "Avg.: mean over the benchmarks; Perf.: percent of all tokens' average"
    yield "-: not run, or not recorded"


def _notes(table: Table) -> list[str]:
    compared = []
    if table.against is not None:
        compared = [f"minus {table.against}: paired difference on the questions that both were asked, same clips drawn"]
    others = {row.row.model for row in table.rows if not all(cell.comparable for cell in row.cells.values())}
    foreign = [f"ours is {', '.join(sorted(others))}, so only Perf. compares with the paper's"] if others else []
    return ["; ".join(_legend(table)), *compared, *foreign, *table.notes]


def _latex_row(cells: list[str]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + " \\\\"


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "%&_#$" else character for character in text)
