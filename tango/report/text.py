"""Tables, in plain text and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], *, num_left: int = 0) -> str:
    """Align cells in columns, two blanks apart: the first `num_left` columns to the left, the others to the right.

    Example:
        >>> print(align([["method", "kept"], ["tango", "10"]], num_left=1))
        method  kept
        tango     10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; the first row is its header.

    Example:
        >>> print(markdown([["method", "kept"], ["tango", "10"]]))
        | method | kept |
        |---|---|
        | tango | 10 |
    """
    header, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|---" * len(rows[0]) + "|", *rest])
