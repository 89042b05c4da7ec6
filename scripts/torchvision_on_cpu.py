"""Lets torchvision be imported beside a torch without CUDA.

The package index has torchvision for Linux with CUDA only. Beside a CPU build of torch its compiled part does not load,
and its Python part then fails on operators that nobody declared. Declaring them is enough: what the model toolkits use
of torchvision is plain Python. `scripts/environment.sh` copies this file into the environment's site-packages, if it is
needed, with a .pth file that imports it at every start; torch itself is imported only when torchvision is.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[Any] = []  # operators exist as long as the library that declared them


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; it only notices the first import of torchvision."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(operator + _SIGNATURE)
            _declared.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())
