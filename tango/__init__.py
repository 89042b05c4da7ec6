"""Tango: training-free video-token pruning for video LLMs.

    model, processor = tango.load("llava-hf/llava-onevision-qwen2-7b-ov-hf")
    with tango.prune(model, "tango", retention_ratio=0.1) as pruning:
        print(tango.answer(model, processor, "clip.mp4", "What happens?"))
        print(pruning.stats)

Importing this package defines names and does nothing else; each name is imported when first used. Modules
are still found under their former names, see `tango.moved`.
"""

from __future__ import annotations

from importlib import import_module

from tango import moved

TYPE_CHECKING = False  # that of `typing`, whose import takes longer than all of this

__version__ = "0.1.0"

_HOMES = {  # module -> the names that it has
    "tango.containers": "LayerTokens Paper PrunedTokens Signal TowerFrames Video VisualTokens",
    "tango.errors": (
        "BudgetError CheckpointError DamagedVideoWarning MissingSignalError OptionError PromptError "
        "TangoError UnknownNameError UnsupportedModelError VideoReadError WriteError"
    ),
    "tango.methods": (
        "DartPruner DivPrunePruner DownsamplePruner DyCokePruner EarlyTomFramesMerger EarlyTomFramesReleaseMerger "
        "EarlyTomPruner FastVidPruner FastvMergePruner FastvPruner FewerFramesPruner FlashVidPruner "
        "FlashVidReleasePruner FlashVidSelectPruner FrameFusionPruner "
        "HolitomMergePruner HolitomPruner KeepAllPruner LayerPruner Plan PruneVidPruner PruneVidSelectPruner "
        "Pruner PyramidDropPruner RandomPruner SparseVlmPruner TangoPaperPruner TangoPruner "
        "TangoReleasePruner TowerMerger UniformPruner VidCom2Pruner VisionZipPruner available_layer_pruners "
        "available_methods available_pruners available_tower_mergers build_layer_pruner build_pruner "
        "build_tower_merger register"
    ),
    "tango.models": "Adapter EncodedImages EncodedVideos load register_adapter",
    "tango.ops.saliency": "available_saliency register_saliency",
    "tango.runtime.answering": "answer prepare",
    "tango.runtime.compiling": "compile_tower",
    "tango.runtime.encoded_video": "EncodedVideo",
    "tango.runtime.encoding": "encode",
    "tango.runtime.pruning": "Pruning prune",
    "tango.runtime.stats": "PruningStats",
    "tango.video.reading": "read_video",
}

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tango.containers import LayerTokens, Paper, PrunedTokens, Signal, TowerFrames, Video, VisualTokens
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
        DownsamplePruner,
        DyCokePruner,
        EarlyTomFramesMerger,
        EarlyTomFramesReleaseMerger,
        EarlyTomPruner,
        FastVidPruner,
        FastvMergePruner,
        FastvPruner,
        FewerFramesPruner,
        FlashVidPruner,
        FlashVidReleasePruner,
        FlashVidSelectPruner,
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
        TowerMerger,
        UniformPruner,
        VidCom2Pruner,
        VisionZipPruner,
        available_layer_pruners,
        available_methods,
        available_pruners,
        available_tower_mergers,
        build_layer_pruner,
        build_pruner,
        build_tower_merger,
        register,
    )
    from tango.models import Adapter, EncodedImages, EncodedVideos, load, register_adapter
    from tango.ops.saliency import available_saliency, register_saliency
    from tango.runtime.answering import answer, prepare
    from tango.runtime.compiling import compile_tower
    from tango.runtime.encoded_video import EncodedVideo
    from tango.runtime.encoding import encode
    from tango.runtime.pruning import Pruning, prune
    from tango.runtime.stats import PruningStats
    from tango.video.reading import read_video


def lazily(
    package: str, homes: Mapping[str, str], *own: str
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package that imports each name when it is first used.

    Args:
        homes: module -> the names that it has, with blanks between.
        own: names that the package itself defines.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}
    public = sorted([*home, *own])

    def find(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home[name]), name)

    return public, find, lambda: public


moved.install()
__all__, __getattr__, __dir__ = lazily(__name__, _HOMES, "__version__")
