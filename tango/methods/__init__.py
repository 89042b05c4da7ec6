"""The pruning methods. Importing this package registers them all."""

from tango.methods import (
    divprune,
    fastv_merge,
    fastvid,
    holitom,
    prunevid_select,
    pyramiddrop,
    random,
    sparsevlm,
    uniform,
    vidcom2,
    visionzip,
)
from tango.methods.base import KeepAllPruner, LayerPruner, Pruner
from tango.methods.registry import (
    available_layer_pruners,
    available_methods,
    available_pruners,
    build_layer_pruner,
    build_layer_pruner_for_mean,
    build_pruner,
    build_pruner_for_mean,
    layer_pruner_class,
    method_class,
    pruner_class,
    register,
)
from tango.methods.tango import TangoPruner

__all__ = [
    "KeepAllPruner",
    "LayerPruner",
    "Pruner",
    "TangoPruner",
    "available_layer_pruners",
    "available_methods",
    "available_pruners",
    "build_layer_pruner",
    "build_layer_pruner_for_mean",
    "build_pruner",
    "build_pruner_for_mean",
    "divprune",
    "fastv_merge",
    "fastvid",
    "holitom",
    "layer_pruner_class",
    "method_class",
    "pruner_class",
    "prunevid_select",
    "pyramiddrop",
    "random",
    "register",
    "sparsevlm",
    "uniform",
    "vidcom2",
    "visionzip",
]
