"""The pruning methods. Importing this package registers them all."""

from tango.methods import (  # noqa: F401  # importing a method registers it
    dart,
    divprune,
    dycoke,
    fastv,
    fastv_merge,
    fastvid,
    framefusion,
    holitom,
    holitom_merge,
    prunevid,
    prunevid_select,
    pyramiddrop,
    random,
    sparsevlm,
    uniform,
    vidcom2,
    visionzip,
)
from tango.methods.base import KeepAllPruner, LayerPruner, Pruner
from tango.methods.plan import Plan
from tango.methods.registry import (
    available_layer_pruners,
    available_methods,
    available_pruners,
    build_layer_pruner,
    build_pruner,
    layer_pruner_class,
    method_class,
    pruner_class,
    register,
)
from tango.methods.tango import TangoPruner

__all__ = [
    "KeepAllPruner",
    "LayerPruner",
    "Plan",
    "Pruner",
    "TangoPruner",
    "available_layer_pruners",
    "available_methods",
    "available_pruners",
    "build_layer_pruner",
    "build_pruner",
    "layer_pruner_class",
    "method_class",
    "pruner_class",
    "register",
]
