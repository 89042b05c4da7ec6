"""`compile_tower`: a vision tower through `torch.compile`, as a scoped and undoable change of one instance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from tango.errors import TangoError, UnsupportedModelError
from tango.models.unwrapping import unwrap

_MARK = "tower_is_compiled"  # attribute of a model


class CompiledTower:
    """Handle of a model whose tower is compiled. `with` or `remove()` restores the model exactly as it was."""

    def __init__(self, undo: contextlib.ExitStack):
        self._undo = undo

    def __enter__(self) -> CompiledTower:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Undo it. Doing it twice is harmless."""
        self._undo.close()


def compile_tower(
    model: Any, *, mode: str | None = None, backend: str | Callable[..., Any] = "inductor"
) -> CompiledTower:
    """Run the vision tower of videos through `torch.compile` from now on, while the model is pruned.

    Use it as a context manager, or call `remove()` on the result. Compiling happens at the first video and takes from
    seconds to minutes; every new batch size may compile anew, so it pays where videos have equally many frames.
    A SigLIP tower is one graph without breaks, and batches of frames are padded to one size. With
    `mode="reduce-overhead"` a GPU then replays it as a CUDA graph. Of a Qwen-VL tower the blocks are compiled one by
    one, all but the last, which methods look into, and images and calls without pruning run through them, too; frames
    of many sizes make many shapes, so leave its mode alone.

    Args:
        model: as in `tango.prune`; before or after it.
        mode, backend: as in `torch.compile`.
    Raises:
        UnsupportedModelError: no adapter for this model, or one that does not know how.
        TangoError: its tower is compiled already.
    """
    model, adapter = unwrap(model)
    parts = adapter.compilable(model)
    if not parts:
        raise UnsupportedModelError(f"the {adapter.title} adapter does not say what to compile of its tower")
    if _MARK in vars(model):
        raise TangoError("this model's tower is compiled already; remove() the first compilation before another")
    with contextlib.ExitStack() as stack:
        vars(model)[_MARK] = True
        stack.callback(vars(model).pop, _MARK)
        for owner, name, function in parts:
            before = {name: vars(owner)[name]} if name in vars(owner) else {}  # such as a hook of accelerate's
            vars(owner)[name] = torch.compile(function, mode=mode, backend=backend)
            stack.callback(vars(owner).update, before)
            stack.callback(vars(owner).pop, name)
        return CompiledTower(stack.pop_all())
