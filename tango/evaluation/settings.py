"""Deprecated: what `MethodConfig.from_settings` does now."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from tango.evaluation.config import MethodConfig


def method_from(*sources: Mapping[str, object]) -> MethodConfig:
    """Deprecated: `MethodConfig.from_settings`."""
    instead = "tango.evaluation.MethodConfig.from_settings"
    warnings.warn(
        f"tango.evaluation.settings.method_from is deprecated; use {instead}", DeprecationWarning, stacklevel=2
    )
    return MethodConfig.from_settings(*sources)
