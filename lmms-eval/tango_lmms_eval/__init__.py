"""Tango's models for lmms-eval. Installing this package is enough: lmms-eval finds them by their entry point."""

from __future__ import annotations

import os
from typing import Any

try:
    from tango.evaluation import end_with_launcher
except ImportError:  # as an error it would become a warning, and lmms-eval's own models, which prune nothing, would run
    raise SystemExit(
        "tango_lmms_eval needs tango-video, which is not installed (the package index has another package called "
        "tango): run `pip install -r requirements.txt` in the folder above lmms-eval/"
    ) from None


def manifests() -> list[Any]:
    """The models that take the place of lmms-eval's own, whatever `WRAPPER` says.

    lmms-eval calls this at every start, so nothing heavy is imported here, and here is seen to how its processes end.
    """
    end_with_launcher(os.environ)
    _end_with_1_after_an_error()
    from lmms_eval.models.registry_v2 import ModelManifest

    here = "tango_lmms_eval.models"
    return [
        ModelManifest("llava_onevision", simple_class_path=f"{here}.LlavaOneVision"),
        ModelManifest("llava_vid", simple_class_path=f"{here}.LlavaVideo"),
        # lmms-eval's own is a chat model, and those go before simple ones.
        ModelManifest("qwen2_5_vl", simple_class_path=f"{here}.Qwen25VL", chat_class_path=f"{here}.Qwen25VLChat"),
    ]


def _end_with_1_after_an_error() -> None:
    """lmms-eval prints the error that ended an evaluation, and goes on to exit with 0.

    It says so in its log last; from there this process exits, and a launcher ends the others, which would wait for it.
    """
    from loguru import logger

    def look(record: Any) -> None:
        if record["level"].name == "ERROR" and record["message"].startswith("Error during evaluation:"):
            raise SystemExit(record["message"].splitlines()[0])

    logger.configure(patcher=look)
