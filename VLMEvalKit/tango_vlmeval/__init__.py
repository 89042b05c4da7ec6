"""Tango's models in VLMEvalKit. `run.py` beside this package registers them and starts the toolkit's own runner."""

from __future__ import annotations

try:
    import tango.evaluation  # noqa: F401
except ImportError:
    raise SystemExit(
        "tango_vlmeval needs tango-video, which is not installed (the package index has another package called tango): "
        "run `pip install -r requirements.txt` in the folder above VLMEvalKit/"
    ) from None
