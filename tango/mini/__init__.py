"""A small trained video LLM (`tango-mini`) and the generated benchmark that it is measured on.

Each name is imported when first used.
"""

# ruff: noqa: F401 - imported for type checkers alone

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tango import lazily

NAME = "tango-mini"
__all__, __getattr__, __dir__ = lazily(
    __name__,
    {
        "tango.mini.benchmark": "benchmark_questions cache_name clip_file",
        "tango.mini.questions": "is_right",
    },
    "NAME",
    "folder",
)

if TYPE_CHECKING:
    from tango.mini.benchmark import benchmark_questions, cache_name, clip_file
    from tango.mini.questions import is_right


def folder() -> Path:
    """Folder of the trained checkpoint that comes with Tango.

    Example:
        >>> model, processor = tango.load(folder())
    """
    return Path(__file__).parent / "weights"
