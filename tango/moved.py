"""Modules under their former names: importing one gives the module it is now, with a DeprecationWarning."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # that of `typing`, whose import takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_RUNTIME = ["answering", "callers", "compiling", "layer_masks", "layer_prune", "overlay", "owned", "pruning", "stats"]
_VIDEO = ["images", "sampling", "sources"]
_PROCESSORS = ["messages", "protocol", "stock", "timestamps"]
# Former name -> name now, for a module and all that is in it.
MOVED = {
    **{f"tango.{name}": f"tango.runtime.{name}" for name in _RUNTIME},
    **{f"tango.{name}": f"tango.video.{name}" for name in _VIDEO},
    **{f"tango.models.{name}": f"tango.models.processors.{name}" for name in _PROCESSORS},
    "tango.models.processor": "tango.models.processors.llava",
    "tango.models.qwen_processor": "tango.models.processors.qwen",
    "tango.calls": "tango.models.calls",
    "tango.splice": "tango.models.splice",
    "tango.llm_shapes": "tango.ops.llm_shapes",
    "tango.shapes": "tango.annotations",
    "tango.interrupts": "tango.processes",
    "tango.quickstart": "tango.toy",
    "tango.bench.reliability": "tango.lab.reliability",
    "tango.bench": "tango.lab.bench",
    "tango.mini.packed": "tango.lab.training.packed",
    "tango.mini.recipe": "tango.lab.training.recipe",
    "tango.mini.train": "tango.lab.training.train",
    "tango.mini.train_language": "tango.lab.training.language",
    "tango.mini.train_vision": "tango.lab.training.vision",
}
_GONE = {"tango.examples": "the example is a file of the repository now: python examples/finetune.py"}


def name_now(name: str) -> str | None:
    """The present name of a module that had this name; None: it never moved."""
    for former, now in MOVED.items():
        if name == former or name.startswith(f"{former}."):
            return now + name.removeprefix(former)
    return None


class Finder:
    """Finds modules by their former names. It comes first: the usual finders would load a moved package twice."""

    def find_spec(self, name: str, _path: Sequence[str] | None = None, _target: object = None) -> ModuleSpec | None:
        if not name.startswith("tango."):
            return None
        if name in _GONE:
            raise ModuleNotFoundError(f"there is no {name}: {_GONE[name]}", name=name)
        return None if name_now(name) is None else ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, _spec: ModuleSpec) -> None:
        return None  # an empty module, which `exec_module` replaces

    def exec_module(self, module: ModuleType) -> None:
        import warnings

        name = module.__name__
        now = name_now(name)
        assert now is not None
        warnings.warn(f"{name} is now {now}; the former name goes with the next release", DeprecationWarning, 2)
        sys.modules[name] = import_module(now)


def install() -> None:
    """Put a Finder before all others, in place of one that an earlier import of Tango left there."""
    others = [finder for finder in sys.meta_path if type(finder).__module__ != __name__]
    sys.meta_path[:] = [Finder(), *others]
