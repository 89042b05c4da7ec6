"""`examine`: what an installation can do and what is wrong with it, check by check.

The checks run in processes of their own, several at a time. A check that raises, hangs or kills its process is reported
as failed, and the others go on. This module needs nothing but the standard library.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Literal, NamedTuple

Status = Literal["ok", "note", "failed"]
DATA = Path(__file__).with_name("data")
# Module and name of every check, in the order of the report. The groups run side by side.
GROUPS: dict[str, tuple[str, ...]] = {
    "environment": ("python", "versions", "packages", "name_clash", "write_rights", "memory", "pooling_head"),
    "machine": ("cpu", "gpu", "decode", "answer", "kernels", "flash_attention"),
    "readers": ("decord", "torchcodec"),
    "toolkits": ("lmms_eval", "tango_lmms_eval", "vlmevalkit", "tango_vlmeval"),
}
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tango.doctor.worker import main; main()"


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        status: "ok", "note" (worth knowing, nothing is wrong) or "failed".
        way_out: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    way_out: str = ""


def examine(*, timeout_s: float = 120.0) -> list[Finding]:
    """Run all checks.

    Args:
        timeout_s: how long each check may take.

    Example:
        >>> [finding for finding in examine() if finding.status == "failed"]  # doctest: +SKIP
        []
    """
    with ThreadPoolExecutor(len(GROUPS)) as pool:
        groups = pool.map(lambda group: list(run_group(*group, timeout_s=timeout_s)), GROUPS.items())
        return [finding for group in groups for finding in group]


def run_group(module: str, names: Sequence[str], *, timeout_s: float) -> Iterator[Finding]:
    """Run checks of a module one after the other in one process, and start a new one after each that kills it."""
    remaining, late = list(names), f"gave no result within {timeout_s:g} s"
    while remaining:
        reason = late
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            command = [sys.executable, "-c", _START, json.dumps(sys.path), module, *remaining]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
            lines: queue.Queue[bytes | None] = queue.Queue()
            assert process.stdout is not None
            threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
            try:
                while remaining and (line := lines.get(timeout=timeout_s)) is not None:
                    yield Finding(**json.loads(line))
                    remaining.pop(0)
                if remaining:
                    reason = _death(process.wait(timeout=timeout_s), errors)
            except (queue.Empty, subprocess.TimeoutExpired):
                pass
            finally:
                process.kill()
                process.wait()
        if remaining:
            way_out = "reinstall what it uses, or report it"
            if reason == late:
                way_out = "on a slow or busy machine give it longer (--timeout); if that does not help, " + way_out
            yield Finding(remaining.pop(0), "failed", f"the check {reason}", way_out)


def _pass_on(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _death(code: int, errors: IO[str]) -> str:
    """How a process ended, and the last line of its errors."""
    errors.seek(0)
    said = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()]
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how} ({said[-1][:200]})" if said else how


def summary(findings: Sequence[Finding]) -> dict[str, object]:
    """The findings as JSON: overall status, and name, status, detail and way_out of each."""
    failed = any(finding.status == "failed" for finding in findings)
    return {"status": "failed" if failed else "ok", "checks": [finding._asdict() for finding in findings]}
