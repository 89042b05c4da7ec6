"""Files that are either whole or untouched, whatever happens while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step, through a temporary one beside it; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Write a record as indented JSON, as `write_bytes` does.

    Raises:
        TypeError: the record holds something that JSON does not have.
    """
    write_bytes(path, (json.dumps(record, indent=2) + "\n").encode())
