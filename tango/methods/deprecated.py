"""Functions that `tango.methods` offers under their former names, with a warning."""

from __future__ import annotations

from typing import Any

from tango.errors import BudgetError
from tango.methods.base import LayerPruner, Pruner
from tango.methods.registry import build_layer_pruner, build_pruner


def build_pruner_for_mean(
    name: str, mean: float, layer_pruner: LayerPruner | None, num_layers: int, **options: Any
) -> Pruner:
    """Deprecated: `build_pruner(name, **options).for_mean(mean, num_layers, layer_pruner)`."""
    if "retention_ratio" in options:
        raise BudgetError("give retention_ratio (pre-LLM) or mean_retention_ratio (over the LLM's layers), not both")
    return build_pruner(name, **options).for_mean(mean, num_layers, layer_pruner)


def build_layer_pruner_for_mean(
    name: str, num_layers: int, mean_retention_ratio: float | None = None, **options: Any
) -> LayerPruner:
    """Deprecated: `build_layer_pruner(name, **options).for_mean(mean, num_layers)`."""
    if mean_retention_ratio is not None and "retention_ratio" in options:
        raise BudgetError(f"{name}'s retention_ratio is the mean over the LLM's layers; leave out mean_retention_ratio")
    mean = options.pop("retention_ratio", 0.1 if mean_retention_ratio is None else mean_retention_ratio)
    return build_layer_pruner(name, **options).for_mean(mean, num_layers)
