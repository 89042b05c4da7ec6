"""The numbers that the paper prints in its tables 1 to 4."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

TABLES = (1, 2, 3, 4)
# Our columns -> columns of the CSV files in `data`.
COLUMNS = {
    "Video-MME/short": "videomme_short",
    "Video-MME/medium": "videomme_medium",
    "Video-MME/long": "videomme_long",
    "Video-MME": "videomme",
    "MVBench": "mvbench",
    "LongVideoBench": "longvideobench",
    "MLVU": "mlvu",
    "average": "avg",
    "performance": "perf_percent",
}


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table of the paper."""

    setting: dict[str, str]  # the cells that say what was run, such as method and retention_ratio
    percent: dict[str, float]  # by the names of our columns


def published(table: int) -> list[PublishedRow]:
    """Read all rows of a table, in the paper's order.

    Source: tables 1 to 4 of arXiv:2604.09547v2; `data/README.md` says how they were taken.
    """
    if table not in TABLES:
        raise ValueError(f"the paper's tables with accuracies are {TABLES}, got {table}")
    name = "tables_1_2.csv" if table <= 2 else f"table_{table}.csv"
    text = (resources.files("tango.report") / "data" / name).read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row.pop("table", str(table)) == str(table)]
    return [
        PublishedRow(
            {name: cell for name, cell in row.items() if name not in COLUMNS.values()},
            {column: float(row[name]) for column, name in COLUMNS.items() if name in row},
        )
        for row in rows
    ]
