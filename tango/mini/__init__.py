"""A small trained video LLM (`tango-mini`) and the generated benchmark that it is measured on.

Each name is imported when first used.
"""

# ruff: noqa: F401 - imported for type checkers alone

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

NAME = "tango-mini"
_HOME = {
    "benchmark_questions": "tango.mini.benchmark",
    "cache_name": "tango.mini.benchmark",
    "clip_file": "tango.mini.benchmark",
    "is_right": "tango.mini.questions",
}
__all__ = sorted(["NAME", "folder", *_HOME])

if TYPE_CHECKING:
    from tango.mini.benchmark import benchmark_questions, cache_name, clip_file
    from tango.mini.questions import is_right


def folder() -> Path:
    """Folder of the trained checkpoint that comes with Tango.

    Example:
        >>> model, processor = tango.load(folder())
    """
    return Path(__file__).parent / "weights"


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tango.mini' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
