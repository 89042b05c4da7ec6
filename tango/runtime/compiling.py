"""`compile_tower`: compile the vision tower of one model, as a scoped change that can be undone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from tango.errors import TangoError, UnsupportedModelError
from tango.models.base import TOWER_IS_COMPILED
from tango.models.unwrapping import unwrap


class CompiledTower:
    """Handle of a model whose tower is compiled. `with` or `remove()` restores the model exactly as it was."""

    def __init__(self, undo: contextlib.ExitStack):
        self._undo = undo

    def __enter__(self) -> CompiledTower:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the model. A second call does nothing."""
        self._undo.close()


def compile_tower(
    model: nn.Module, *, mode: str | None = None, backend: str | Callable[..., object] = "inductor"
) -> CompiledTower:
    """Run videos through a compiled vision tower from now on, while the model is pruned.

    Use it as a context manager, or call `remove()` on the result. The first video compiles the tower, which takes from
    seconds to minutes. A new batch size may compile it again, so this pays where all videos have the same number of
    frames.

    A SigLIP tower is compiled whole, as one graph without breaks, and batches of frames are padded to one size. With
    `mode="reduce-overhead"` a GPU then replays it as a CUDA graph. A Qwen-VL tower is compiled block by block, without
    the last block, which methods look into; images and unpruned calls run through the compiled blocks, too. Its frames
    have many sizes and so make many shapes: leave `mode` alone there.

    Args:
        model: as in `tango.prune`, which may come before or after.
        mode, backend: as in `torch.compile`.
    Raises:
        UnsupportedModelError: no adapter for this model, or an adapter that names nothing to compile.
        TangoError: the tower is compiled already.
    Example:
        >>> with tango.compile_tower(model), tango.prune(model, "tango") as pruning:
        ...     pass  # the first video compiles the tower, those after it run faster
    """
    model, adapter = unwrap(model)
    parts = adapter.compilable(model)
    if not parts:
        raise UnsupportedModelError(f"the {adapter.title} adapter does not say what to compile of its tower")
    if TOWER_IS_COMPILED in vars(model):
        raise TangoError("this model's tower is compiled already; remove() the first compilation before another")
    with contextlib.ExitStack() as stack:
        vars(model)[TOWER_IS_COMPILED] = True
        stack.callback(vars(model).pop, TOWER_IS_COMPILED)
        for owner, name, function in parts:
            before = {name: vars(owner)[name]} if name in vars(owner) else {}  # such as a hook of accelerate's
            vars(owner)[name] = torch.compile(function, mode=mode, backend=backend)
            stack.callback(vars(owner).update, before)
            stack.callback(vars(owner).pop, name)
        return CompiledTower(stack.pop_all())
