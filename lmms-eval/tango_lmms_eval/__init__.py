"""Tango's models for lmms-eval. Installing this package is enough: lmms-eval finds them by their entry point."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """The models that take the place of lmms-eval's own, whatever `WRAPPER` says.

    lmms-eval calls this at every start, so nothing heavy is imported here.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    here = "tango_lmms_eval.models"
    return [
        ModelManifest("llava_onevision", simple_class_path=f"{here}.LlavaOneVision"),
        ModelManifest("llava_vid", simple_class_path=f"{here}.LlavaVideo"),
        # lmms-eval's own is a chat model, and those go before simple ones.
        ModelManifest("qwen2_5_vl", simple_class_path=f"{here}.Qwen25VL", chat_class_path=f"{here}.Qwen25VLChat"),
    ]
