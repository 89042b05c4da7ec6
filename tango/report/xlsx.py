"""Excel files as the evaluation toolkits write them: values of the first sheet, without styles, dates or formulas."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_NAMESPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_xlsx(path: Path) -> list[dict[str, Any]]:
    """The rows below the header, by the header's names; empty cells are None.

    Raises:
        ValueError: this is no Excel file, or one that is cut off.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            shared = _texts(archive.read("xl/sharedStrings.xml")) if "xl/sharedStrings.xml" in names else []
            sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
        rows = [_row(row, shared) for row in sheet.iter(f"{_NAMESPACE}row")]
    except (zipfile.BadZipFile, ElementTree.ParseError, KeyError, IndexError) as error:
        raise ValueError(f"not a readable Excel file: {error}") from error
    if not rows:
        raise ValueError("not a table: it has no header")
    header = {column: str(name) for column, name in rows[0].items() if name is not None}
    return [{name: row.get(column) for column, name in header.items()} for row in rows[1:]]


def _texts(document: bytes) -> list[str]:
    """The strings that cells refer to by number; one may consist of several runs."""
    return [
        "".join(text.text or "" for text in item.iter(f"{_NAMESPACE}t"))
        for item in ElementTree.fromstring(document).iter(f"{_NAMESPACE}si")
    ]


def _row(row: ElementTree.Element, shared: list[str]) -> dict[str, Any]:
    cells = {}
    for cell in row.iter(f"{_NAMESPACE}c"):
        column = re.sub(r"\d+", "", cell.attrib["r"])
        cells[column] = _value(cell, shared)
    return cells


def _value(cell: ElementTree.Element, shared: list[str]) -> Any:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return "".join(text.text or "" for text in cell.iter(f"{_NAMESPACE}t"))
    text = cell.findtext(f"{_NAMESPACE}v")
    if text is None or kind == "e":  # e: an error, such as #N/A
        return None
    if kind == "s":
        return shared[int(text)]
    if kind == "b":
        return text == "1"
    if kind == "str":
        return text
    return float(text) if re.search(r"[.eE]", text) else int(text)
