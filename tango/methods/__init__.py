"""The pruning methods. Importing this package registers them all."""

from tango.methods import divprune, dycoke, fastv_merge, fastvid, holitom, prunevid, random, uniform, vidcom2, visionzip
from tango.methods.base import LayerPruner, Pruner
from tango.methods.registry import (
    available_layer_pruners,
    available_pruners,
    build_layer_pruner,
    build_pruner,
    build_pruner_for_mean,
    layer_pruner_class,
    pruner_class,
    register,
    register_layer,
)
from tango.methods.tango import TangoPruner

__all__ = [
    "LayerPruner",
    "Pruner",
    "TangoPruner",
    "available_layer_pruners",
    "available_pruners",
    "build_layer_pruner",
    "build_pruner",
    "build_pruner_for_mean",
    "divprune",
    "dycoke",
    "fastv_merge",
    "fastvid",
    "holitom",
    "layer_pruner_class",
    "pruner_class",
    "prunevid",
    "random",
    "register",
    "register_layer",
    "uniform",
    "vidcom2",
    "visionzip",
]
