"""Running kernels without a GPU: by Triton's interpreter, which reads and writes tensors of the CPU."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import pytest
import torch


def choose_the_interpreter() -> None:
    """Triton asks for it once, when it is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def call(module: str, name: str, arguments: bytes) -> bytes:
    args, kwargs = unpacked(arguments)
    return packed(getattr(import_module(module), name)(*args, **kwargs))


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls functions by their dotted names in a process of its own, where Triton interprets its kernels."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=choose_the_interpreter) as pool:

        def run(function: str, *args: Any, **kwargs: Any) -> Any:
            module, _, name = function.rpartition(".")
            return unpacked(pool.submit(call, module, name, packed((args, kwargs))).result())

        yield run
