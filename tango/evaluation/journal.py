"""`Journal`: every answer of a run is on the disk before the next question begins, so a killed run loses nothing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from tango.errors import TangoError
from tango.evaluation.questions import Answer
from tango.files import write_json, writing

log = logging.getLogger(__name__)

_KEPT = "all answers before this one are kept; make room, and the same run goes on from there"


class Journal:
    """Answers by their question's key, in a folder with one append-only file per process.

    All files of the folder are read at the start, however many processes wrote them. A line that a killed process left
    unfinished is skipped. Answers with an error are recorded but not returned: such a question is asked again.

    Args:
        config: all that the answers depend on besides their questions, versions of libraries included.
    Raises:
        TangoError: the folder holds answers of another configuration.
    Example:
        >>> journal = Journal("runs/tango", {"pretrained": "tango-mini"})
        >>> journal.add("a question's key", Answer(text="cyan"))
        >>> journal.close()
        >>> again = Journal("runs/tango", {"pretrained": "tango-mini"})
        >>> again.get("a question's key").text
        'cyan'
        >>> again.close()
    """

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, object], *, rank: int = 0):
        self.folder = Path(folder)
        self._check_config(json.loads(json.dumps(config)))
        self._answers = dict(self._read())
        path = self.folder / f"answers-{rank:05d}.jsonl"
        torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        self._file = path.open("ab")
        if torn:  # else the next answer would be part of the unfinished line
            self._write(b"\n")

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer that an earlier run gave to this question; None if there is none."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer to the disk; when this returns, it is there.

        Raises:
            WriteError: it cannot be written, as on a full disk; the answers before it are kept.
        """
        record = {"key": key, **asdict(answer)}
        del record["cached"]
        self._write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with writing(self._file.name, _KEPT):
            self._file.close()

    def _write(self, line: bytes) -> None:
        with writing(self._file.name, _KEPT):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self) -> dict[str, Answer]:
        found: dict[str, Answer] = {}
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                    key, answer = record.pop("key"), replace(Answer(**record), cached=True)
                except (ValueError, TypeError, KeyError, AttributeError):
                    if line.strip():
                        log.warning("%s: skipped an unfinished line; its question is asked again", path)
                    continue
                if answer.error is None:
                    found[key] = answer
        return found

    def _check_config(self, config: dict[str, object]) -> None:
        """Compare this configuration with the folder's; write it if the folder has none."""
        if not _config_file(self.folder).is_file():
            write_json(_config_file(self.folder), config)
            return
        _compare(self.folder, config, _read_config(self.folder))


def check_journal(folder: Path, part: Mapping[str, object]) -> None:
    """Compare part of a configuration with the journal in a folder, before anything is loaded.

    Raises:
        TangoError: there is a journal, and it has other values.
    Example:
        >>> check_journal(Path("runs/tango"), {"pretrained": "tango-mini"})  # no journal yet, or of this model
    """
    if _config_file(folder).is_file():
        recorded = _read_config(folder)
        _compare(folder, dict(part), {name: _same_names(part[name], recorded.get(name)) for name in part})


def _config_file(folder: Path) -> Path:
    return folder / "config.json"


def _read_config(folder: Path) -> dict[str, object]:
    path = _config_file(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"expected an object, got {type(config).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise TangoError(f"{path} is no configuration of a journal: {error}; use another folder") from error
    return config


def _same_names(part: object, recorded: object) -> object:
    """Reduce what is recorded to the names that `part` has."""
    if isinstance(part, Mapping) and isinstance(recorded, Mapping):
        return {name: recorded.get(name) for name in part}
    return recorded


def _compare(folder: Path, now: dict[str, object], before: dict[str, object]) -> None:
    got, there = _differences(now, before)
    if got or there:
        raise TangoError(
            f"the journal {folder} holds answers of another configuration: got {got}, there {there}. "
            "Use another folder, or remove this one to start over"
        )


def _differences(now: dict[str, object], before: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """The values in which two nested configurations differ, on either side; None equals a missing value."""
    got, there = {}, {}
    for name in {**before, **now}:
        new, old = now.get(name), before.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            new, old = _differences(new, old)
        if new != old:
            got[name], there[name] = new, old
    return got, there
