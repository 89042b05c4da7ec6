"""The pruning methods; importing this package registers all of them."""

import warnings

from tango.methods import deprecated
from tango.methods.base import KeepAllPruner, LayerPruner, Pruner, TowerMerger
from tango.methods.dart import DartPruner
from tango.methods.divprune import DivPrunePruner
from tango.methods.downsample import DownsamplePruner
from tango.methods.dycoke import DyCokePruner
from tango.methods.earlytom import EarlyTomFramesMerger, EarlyTomFramesReleaseMerger, EarlyTomPruner
from tango.methods.fastv import FastvPruner
from tango.methods.fastv_merge import FastvMergePruner
from tango.methods.fastvid import FastVidPruner
from tango.methods.fewer_frames import FewerFramesPruner
from tango.methods.flashvid import FlashVidPruner, FlashVidReleasePruner
from tango.methods.flashvid_select import FlashVidSelectPruner
from tango.methods.framefusion import FrameFusionPruner
from tango.methods.holitom import HolitomPruner
from tango.methods.holitom_merge import HolitomMergePruner
from tango.methods.plan import Plan
from tango.methods.prunevid import PruneVidPruner
from tango.methods.prunevid_select import PruneVidSelectPruner
from tango.methods.pyramiddrop import PyramidDropPruner
from tango.methods.random import RandomPruner
from tango.methods.registry import (
    available_layer_pruners,
    available_methods,
    available_pruners,
    available_tower_mergers,
    build_layer_pruner,
    build_pruner,
    build_tower_merger,
    layer_pruner_class,
    method_class,
    pruner_class,
    ready_pruners,
    register,
)
from tango.methods.sparsevlm import SparseVlmPruner
from tango.methods.tango import TangoPaperPruner, TangoPruner, TangoReleasePruner
from tango.methods.uniform import UniformPruner
from tango.methods.vidcom2 import VidCom2Pruner
from tango.methods.visionzip import VisionZipPruner

__all__ = [
    "DartPruner",
    "DivPrunePruner",
    "DownsamplePruner",
    "DyCokePruner",
    "EarlyTomFramesMerger",
    "EarlyTomFramesReleaseMerger",
    "EarlyTomPruner",
    "FastVidPruner",
    "FastvMergePruner",
    "FastvPruner",
    "FewerFramesPruner",
    "FlashVidPruner",
    "FlashVidReleasePruner",
    "FlashVidSelectPruner",
    "FrameFusionPruner",
    "HolitomMergePruner",
    "HolitomPruner",
    "KeepAllPruner",
    "LayerPruner",
    "Plan",
    "PruneVidPruner",
    "PruneVidSelectPruner",
    "Pruner",
    "PyramidDropPruner",
    "RandomPruner",
    "SparseVlmPruner",
    "TangoPaperPruner",
    "TangoPruner",
    "TangoReleasePruner",
    "TowerMerger",
    "UniformPruner",
    "VidCom2Pruner",
    "VisionZipPruner",
    "available_layer_pruners",
    "available_methods",
    "available_pruners",
    "available_tower_mergers",
    "build_layer_pruner",
    "build_pruner",
    "build_tower_merger",
    "layer_pruner_class",
    "method_class",
    "pruner_class",
    "ready_pruners",
    "register",
]


_DEPRECATED = {
    "build_pruner_for_mean": "build_pruner and Pruner.for_mean",
    "build_layer_pruner_for_mean": "build_layer_pruner and LayerPruner.for_mean",
}


def __getattr__(name: str) -> object:
    if name not in _DEPRECATED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"tango.methods.{name} is deprecated; use {_DEPRECATED[name]}", DeprecationWarning, stacklevel=2)
    return getattr(deprecated, name)
