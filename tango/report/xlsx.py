"""Excel files as the evaluation toolkits write them: values of the first sheet, without styles, dates or formulas."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# Of sheet and texts together, unpacked: a hundred times what the paper's largest benchmark needs. A file of less than a
# megabyte can hold a thousand times its size, and as objects in memory it grows ten times more.
MAX_BYTES = 64 * 2**20
_NAMESPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_SHEET, _TEXTS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
# The last three: a packing that is not known, a password, a stream that is cut off.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, ElementTree.ParseError, KeyError, IndexError, NotImplementedError, RuntimeError,
    EOFError,
)  # fmt: skip


def read_xlsx(path: Path) -> list[dict[str, Any]]:
    """The rows below the header, by the header's names; empty cells are None.

    Raises:
        ValueError: this is no Excel file, one that is cut off, or one that unpacks to more than `MAX_BYTES`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts = _unpacked(archive, _TEXTS, MAX_BYTES) if _TEXTS in archive.namelist() else b""
            document = _unpacked(archive, _SHEET, MAX_BYTES - len(texts))
        shared, sheet = _texts(texts) if texts else [], ElementTree.fromstring(document)
        rows = [_row(row, shared) for row in sheet.iter(f"{_NAMESPACE}row")]
    except _UNREADABLE as error:
        raise ValueError(f"not a readable Excel file: {error}") from error
    if not rows:
        raise ValueError("not a table: it has no header")
    header = {column: str(name) for column, name in rows[0].items() if name is not None}
    return [{name: row.get(column) for column, name in header.items()} for row in rows[1:]]


def _unpacked(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A part of the file; what its header says of its size does not count."""
    with archive.open(name) as part:
        document = part.read(most + 1)
    if len(document) > most:
        raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MiB, which no table of the toolkits' does")
    return document


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
