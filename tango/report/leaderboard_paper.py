"""The numbers that the paper prints, as entries of the leaderboard."""

from __future__ import annotations

from collections.abc import Iterator

from tango.report.benchmarks import benchmark
from tango.report.leaderboard import REPORTED, SCHEMA
from tango.report.paper import PublishedRow, published

_PAPER = {"who": "the authors of Tango", "link": "https://arxiv.org/abs/2604.09547v2"}


def paper_entries() -> Iterator[dict[str, object]]:
    """Yield the accuracies of tables 1 and 2 of the paper, one entry for each row and benchmark.

    The paper does not say which sets it asked, so none is named, and these rows stand in tables of their own.
    """
    for table in (1, 2):
        for row in published(table):
            for column, percent in row.percent.items():
                if column not in ("average", "performance") and "/" not in column:
                    yield _published(table, row, column, percent)


def _published(table: int, row: PublishedRow, column: str, percent: float) -> dict[str, object]:
    name, known = row.setting["method"], benchmark(column)
    own = name.partition("+")[0] in ("full", "tango")
    method = {"method": "none" if name == "full" else name}
    nothing = dict.fromkeys(
        ("num_frames", "set", "part", "interval", "num_questions", "num_asked", "num_correct", "num_failed",
         "num_clips", "versions", "hardware", "date")
    )  # fmt: skip
    again = "" if own else "; a run of theirs, not a number of this method's own authors"
    return {
        **nothing,
        "schema": SCHEMA,
        "kind": f"{REPORTED}Tango",
        "source": _PAPER,
        "model": row.setting["model"],
        "benchmark": known.name,
        "name": name,
        "method": method,
        "control": False,
        "kept_share": 1.0 if name == "full" else None,
        "nominal_ratio": float(row.setting["retention_ratio"]),
        "accuracy": percent,
        "notes": f"table {table} of the paper{again}",
    }
