"""A small trained video LLM (`tango-mini`) and the generated benchmark that it is measured on."""

from __future__ import annotations

from pathlib import Path

NAME = "tango-mini"


def folder() -> Path:
    """Folder of the trained checkpoint that comes with Tango: `tango.load(tango.mini.folder())`."""
    return Path(__file__).parent / "weights"
