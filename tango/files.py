"""Files that are either whole or untouched, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step, through a temporary one beside it; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], record: Any) -> None:
    """Write a record as indented JSON, as `write_bytes` does.

    Raises:
        TypeError: the record holds something that JSON does not have.
    """
    write_bytes(Path(path), (json.dumps(record, indent=2) + "\n").encode())
