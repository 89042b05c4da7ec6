"""Results: the form in which they are written, and tables and pictures for people's eyes.

    write_records(Path("runs/tango"), run, records)

Public is what writes and describes records, see docs/file-formats.md; each name is imported when first used.
"""

# ruff: noqa: F401 - imported for type checkers alone

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Benchmark": "tango.report.benchmarks",
    "benchmark": "tango.report.benchmarks",
    "with_method": "tango.report.readers",
    "without_records": "tango.report.readers",
    "write_records": "tango.report.records",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from tango.report.benchmarks import Benchmark, benchmark
    from tango.report.readers import with_method, without_records
    from tango.report.records import write_records


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tango.report' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
