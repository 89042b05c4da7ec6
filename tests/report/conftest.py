"""What the tests of reports share."""

from __future__ import annotations

import pytest

from tango.report import benchmarks
from tests.report.folders import MINIATURE


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four benchmarks have as many questions as the tests' folders."""
    monkeypatch.setattr(benchmarks, "BENCHMARKS", MINIATURE)
