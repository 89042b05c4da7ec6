"""The pruning methods. Importing this package registers them all."""

from tango.methods import random, uniform
from tango.methods.base import LayerPruner, Pruner
from tango.methods.registry import available_pruners, build_pruner, pruner_class, register
from tango.methods.tango import TangoPruner

__all__ = [
    "LayerPruner",
    "Pruner",
    "TangoPruner",
    "available_pruners",
    "build_pruner",
    "pruner_class",
    "random",
    "register",
    "uniform",
]
