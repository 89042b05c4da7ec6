"""What is recorded with every result: weights, code, versions of libraries, and the machine."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tango.fingerprints import of_checkpoint, of_code, of_packages
from tango.processes import resident_bytes

if TYPE_CHECKING:
    import torch

    from tango.evaluation.config import MethodConfig

_READERS = ("av", "decord", "torchcodec")


def versions() -> dict[str, str]:
    """Versions of tango, Python, torch, transformers, tokenizers and the packages that read videos, where installed."""
    from tango import __version__

    found = {"tango": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", *_READERS):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def identity(
    pretrained: str, method: MethodConfig | None = None, *, video_backend: str = "auto", local_files_only: bool = False
) -> dict[str, Any]:
    """Find what answers depend on behind the names in a configuration: hashes of weights and code, library versions.

    Raises:
        TangoError: there is no such checkpoint.
    Example:
        >>> sorted(identity("tango-mini")["content"])
        ['checkpoint', 'code']
    """
    from tango.models.base import find_adapter
    from tango.models.checkpoint import read_json
    from tango.models.hub import resolve_folder

    folder = resolve_folder(pretrained, local_files_only=local_files_only)
    held = {} if method is None else method.content()
    config = folder / "config.json"
    adapter = find_adapter(str(read_json(config).get("model_type"))) if config.is_file() else None
    if adapter is not None and (packages := of_packages(adapter)):
        held["packages"] = {**held.get("packages", {}), **packages}
    content = {"checkpoint": of_checkpoint(folder), "code": of_code(), **held}
    return {"content": content, "versions": versions_behind(video_backend)}


def versions_behind(video_backend: str) -> dict[str, str]:
    """The versions that answers depend on: all but Python's and those of unused video readers."""
    reader = video_backend if video_backend in _READERS else "av"
    unused = {"python", *_READERS} - {reader}
    return {name: found for name, found in versions().items() if name not in unused}


def environment() -> dict[str, Any]:
    """Versions, GPUs, CPU and date, as plain values.

    Example:
        >>> sorted(environment())
        ['cpu', 'date', 'gpus', 'num_cpus', 'platform', 'versions']
    """
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "gpus": gpus,
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "platform": platform.platform(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The CPU's model if the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def peak_bytes(device: torch.device) -> int:
    """The most memory in use so far: by torch on a GPU, or by the whole process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_bytes(peak=True)
