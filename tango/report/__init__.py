"""Results: the form in which they are written, and tables and pictures for people's eyes.

    write_records(Path("runs/tango"), run, records)

Public is what writes and describes records, see docs/file-formats.md; each name is imported when first used.
"""

# ruff: noqa: F401 - imported for type checkers alone

from __future__ import annotations

from typing import TYPE_CHECKING

from tango import lazily

__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "tango.report.benchmarks": "Benchmark benchmark with_subtitles",
        "tango.report.readers": "with_method without_records",
        "tango.report.records": "write_records",
    },
)

if TYPE_CHECKING:
    from tango.report.benchmarks import Benchmark, benchmark, with_subtitles
    from tango.report.readers import with_method, without_records
    from tango.report.records import write_records
