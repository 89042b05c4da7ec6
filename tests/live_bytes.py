"""How much memory tensors take while something runs, counted instead of measured: the same on every machine."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators made and that are still alive, after every operator.

    Args:
        known: tensors that exist already and do not count, nor do views of them.
    """

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.peak = 0
        self._known = {t.untyped_storage()._cdata for t in tree_leaves(known) if isinstance(t, torch.Tensor)}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.now())
        return result

    def now(self) -> int:
        """Bytes that are alive at this moment."""
        self._live = {key: pair for key, pair in self._live.items() if not pair[0].expired()}
        return sum(size for _, size in self._live.values())


def known_tensors(model: torch.nn.Module, *inputs: Any) -> list[Any]:
    """A model's weights and its inputs."""
    return [*model.parameters(), *model.buffers(), *inputs]
