"""Tango: training-free video-token pruning for video LLMs.

    model, processor = tango.load("llava-hf/llava-onevision-qwen2-7b-ov-hf")
    with tango.prune(model, "tango", retention_ratio=0.1) as pruning:
        print(tango.answer(model, processor, "clip.mp4", "What happens?"))
        print(pruning.stats)

Importing this package defines names and does nothing else; each name is imported when first used. Modules that had
another name once are found under it still, see `tango.moved`.
"""

from __future__ import annotations

from importlib import import_module

from tango import moved

TYPE_CHECKING = False  # that of `typing`, whose import takes longer than all of this

__version__ = "0.1.0"

_HOME = {
    "Video": "tango.containers",
    "VisualTokens": "tango.containers",
    "PrunedTokens": "tango.containers",
    "Signal": "tango.containers",
    "Paper": "tango.containers",
    "Pruner": "tango.methods",
    "LayerPruner": "tango.methods",
    "DartPruner": "tango.methods",
    "DivPrunePruner": "tango.methods",
    "DyCokePruner": "tango.methods",
    "FastVidPruner": "tango.methods",
    "FastvMergePruner": "tango.methods",
    "FastvPruner": "tango.methods",
    "FrameFusionPruner": "tango.methods",
    "HolitomMergePruner": "tango.methods",
    "HolitomPruner": "tango.methods",
    "KeepAllPruner": "tango.methods",
    "PruneVidPruner": "tango.methods",
    "PruneVidSelectPruner": "tango.methods",
    "PyramidDropPruner": "tango.methods",
    "RandomPruner": "tango.methods",
    "SparseVlmPruner": "tango.methods",
    "TangoPaperPruner": "tango.methods",
    "TangoPruner": "tango.methods",
    "TangoReleasePruner": "tango.methods",
    "UniformPruner": "tango.methods",
    "VidCom2Pruner": "tango.methods",
    "VisionZipPruner": "tango.methods",
    "Adapter": "tango.models",
    "EncodedImages": "tango.models",
    "EncodedVideos": "tango.models",
    "register_adapter": "tango.models",
    "LayerTokens": "tango.containers",
    "available_layer_pruners": "tango.methods",
    "available_methods": "tango.methods",
    "available_pruners": "tango.methods",
    "build_layer_pruner": "tango.methods",
    "build_pruner": "tango.methods",
    "available_saliency": "tango.ops.saliency",
    "register": "tango.methods",
    "register_saliency": "tango.ops.saliency",
    "Plan": "tango.methods",
    "prune": "tango.runtime.pruning",
    "Pruning": "tango.runtime.pruning",
    "PruningStats": "tango.runtime.stats",
    "compile_tower": "tango.runtime.compiling",
    "load": "tango.models",
    "answer": "tango.runtime.answering",
    "prepare": "tango.runtime.answering",
    "read_video": "tango.video.reading",
    "TangoError": "tango.errors",
    "UnknownNameError": "tango.errors",
    "OptionError": "tango.errors",
    "UnsupportedModelError": "tango.errors",
    "MissingSignalError": "tango.errors",
    "BudgetError": "tango.errors",
    "CheckpointError": "tango.errors",
    "PromptError": "tango.errors",
    "VideoReadError": "tango.errors",
    "WriteError": "tango.errors",
    "DamagedVideoWarning": "tango.errors",
}
__all__ = sorted([*_HOME, "__version__"])

if TYPE_CHECKING:
    from tango.containers import LayerTokens, Paper, PrunedTokens, Signal, Video, VisualTokens
    from tango.errors import (
        BudgetError,
        CheckpointError,
        DamagedVideoWarning,
        MissingSignalError,
        OptionError,
        PromptError,
        TangoError,
        UnknownNameError,
        UnsupportedModelError,
        VideoReadError,
        WriteError,
    )
    from tango.methods import (
        DartPruner,
        DivPrunePruner,
        DyCokePruner,
        FastVidPruner,
        FastvMergePruner,
        FastvPruner,
        FrameFusionPruner,
        HolitomMergePruner,
        HolitomPruner,
        KeepAllPruner,
        LayerPruner,
        Plan,
        Pruner,
        PruneVidPruner,
        PruneVidSelectPruner,
        PyramidDropPruner,
        RandomPruner,
        SparseVlmPruner,
        TangoPaperPruner,
        TangoPruner,
        TangoReleasePruner,
        UniformPruner,
        VidCom2Pruner,
        VisionZipPruner,
        available_layer_pruners,
        available_methods,
        available_pruners,
        build_layer_pruner,
        build_pruner,
        register,
    )
    from tango.models import Adapter, EncodedImages, EncodedVideos, load, register_adapter
    from tango.ops.saliency import available_saliency, register_saliency
    from tango.runtime.answering import answer, prepare
    from tango.runtime.compiling import compile_tower
    from tango.runtime.pruning import Pruning, prune
    from tango.runtime.stats import PruningStats
    from tango.video.reading import read_video


moved.install()


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tango' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
