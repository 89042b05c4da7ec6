"""Files that are either whole or untouched, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tango.errors import WriteError


def configs_folder() -> Path:
    """The folder `configs`: inside the package in an installation, at the top level in a clone."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


@contextmanager
def writing(path: str | os.PathLike[str], kept: str) -> Iterator[None]:
    """Turn an OSError inside into a WriteError that names the file and says what was kept.

    Args:
        kept: what is left in spite of the error, as the end of a sentence.
    Raises:
        WriteError: writing inside failed.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}" if error.strerror else str(error)
        raise WriteError(f"cannot write {os.fspath(path)!r}: {reason}; {kept}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there. Call it before hours of work, not after them.

    Raises:
        WriteError: it cannot be made.
    """
    with writing(path, "nothing has been done yet"):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step, through a temporary one beside it; missing folders are made.

    Anything but a regular file, such as /dev/stdout or a named pipe, is written to and never replaced.

    Raises:
        WriteError: it cannot be written; what was there before is untouched.
    """
    with writing(path, "what was there before is untouched"):
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:  # raises if it is a folder
                stream.write(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp lets only its owner read it
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], record: object) -> None:
    """Write a record as indented JSON, as `write_bytes` does.

    Raises:
        TypeError: the record holds something that JSON does not have.
        WriteError: it cannot be written; what was there before is untouched.
    Example:
        >>> write_json("run.json", {"accuracy": 0.5})
        >>> print(Path("run.json").read_text())
        {
          "accuracy": 0.5
        }
    """
    write_bytes(Path(path), (json.dumps(record, indent=2) + "\n").encode())
