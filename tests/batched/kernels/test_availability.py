"""tango.batched.kernels: where the kernels can be used."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tango.batched import kernels, merging, rotation
from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods import build_pruner

CUDA_TENSOR: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that has everything."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(kernels, "_triton_is_complete", kernels._triton_is_complete.__wrapped__)  # asks every time
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index == 1 else (7, 5))
    monkeypatch.setattr(kernels, "find_spec", lambda name: importlib.util.find_spec("torch") if name == "triton" else 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"bin/{name}" if name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_config_var", {"INCLUDEPY": str(tmp_path)}.get)
    return monkeypatch


def test_an_ampere_gpu_with_triton_and_a_compiler(machine: pytest.MonkeyPatch) -> None:
    assert kernels.kernels_run_on(CUDA_TENSOR)
    machine.setattr(shutil, "which", lambda name: f"bin/{name}" if name == "clang" else None)
    assert kernels.kernels_run_on(CUDA_TENSOR)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.usefixtures("machine")
def test_not_without_a_gpu(device: str) -> None:
    assert not kernels.kernels_run_on(torch.empty(2, device=device))


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (torch.cuda, "get_device_capability", lambda _: (7, 5)),
        (torch.version, "hip", "6.4"),
        (kernels, "find_spec", lambda _: None),
        (shutil, "which", lambda _: None),
        (sysconfig, "get_config_var", {"INCLUDEPY": "nowhere"}.get),
    ],
    ids=["older GPU", "another maker's", "no triton", "no compiler", "no headers"],
)
def test_not_on_this_machine(machine: pytest.MonkeyPatch, module: Any, name: str, value: Any) -> None:
    machine.setattr(module, name, value)
    assert not kernels.kernels_run_on(CUDA_TENSOR)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_pruners_option_decides(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    asked = []
    for module in (merging, rotation):
        monkeypatch.setattr(module, "kernels_run_on", lambda _: bool(asked.append("whether they run")))
    build_pruner("tango", retention_ratio=0.3, kernels=allowed)(synthetic_tokens("video", 6, (3, 4), 48))
    assert bool(asked) == allowed
