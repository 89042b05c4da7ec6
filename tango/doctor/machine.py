"""Checks of the CPU and the GPU, and of a small model on them, from the file to the answer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tango.doctor import Finding, clip
from tango.doctor.worker import one_line

_GIB = 1 << 30


def cpu() -> Finding:
    """Name of the CPU, its cores and PyTorch's threads."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    detail = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, PyTorch uses {capability}"
    return Finding("cpu", "ok", detail)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu() -> Finding:
    """GPUs: names, memory, number formats, the driver, and the CUDA version that PyTorch was built for."""
    import torch

    present, built = _nvidia_smi("name,driver_version"), torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        if not present:
            return Finding("gpu", "note", "no GPU; everything runs on the CPU")
        fault = f", built for CUDA {built}, cannot use it" if built else " was built without CUDA"
        detail = f"there is a GPU ({present}), but PyTorch {torch.__version__}{fault}"
        return Finding("gpu", "failed", detail, "install a PyTorch that fits the driver; see pytorch.org/get-started")
    described = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        ones = torch.ones(64, 64, device=f"cuda:{index}", dtype=torch.float16)
        if not bool((ones @ ones == 64).all()):
            way_out = "update the driver, or leave the GPU out with CUDA_VISIBLE_DEVICES"
            return Finding("gpu", "failed", f"{properties.name} computes wrong products", way_out)
        capability = f"compute capability {properties.major}.{properties.minor}"
        described.append(f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, {capability}")
    formats = "float32, float16" + (", bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "")
    driver = present.rpartition(",")[2].strip() or "unknown"
    return Finding("gpu", "ok", f"{'; '.join(described)}; {formats}; built for {built}, driver {driver}")


def _nvidia_smi(fields: str) -> str:
    """The driver's answer about the first GPU; empty if there is none."""
    if (command := shutil.which("nvidia-smi")) is None:
        return ""
    run = subprocess.run(
        [command, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
    )
    return (run.stdout.splitlines() or [""])[0].strip() if run.returncode == 0 else ""


def decode() -> Finding:
    """Tango's own reader returns the known pixels of the clip."""
    from tango.video.reading import read_video

    return clip.compare("decode", "PyAV", read_video(clip.FILE, num_frames=clip.NUM_FRAMES).frames.numpy())


def answer() -> Finding:
    """tango-mini answers a question about the clip correctly, with all tokens and with a fifth of them."""
    import torch

    import tango
    from tango import mini
    from tango.runtime.answering import generate_text

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = tango.load(mini.NAME, device=device, dtype="float32")
    inputs = tango.prepare(processor, tango.read_video(clip.FILE, num_frames=clip.NUM_FRAMES), clip.QUESTION)
    said, kept = [], []
    for ratio in (1.0, 0.2):
        with tango.prune(model, "tango", retention_ratio=ratio) as pruning:
            said.append(generate_text(model, processor, inputs, max_new_tokens=1).strip())
            assert pruning.stats is not None
            kept.append(pruning.stats.tokens_after)
    detail = f"tango-mini on {device}: {said[0]!r} from {kept[0]} tokens, {said[1]!r} from {kept[1]}"
    if said != [clip.ANSWER] * 2 or not 0 < kept[1] < kept[0] == clip.NUM_FRAMES * 49:
        detail = f"{detail}; expected {clip.ANSWER!r} from {clip.NUM_FRAMES * 49} and from some of them"
        return Finding("answer", "failed", detail, "install the tested versions (requirements.txt), or report it")
    return Finding("answer", "ok", detail)


def kernels() -> Finding:
    """Tango's Triton kernels are used, or why they are not."""
    import torch

    from tango.batched.kernels import kernels_run_on

    if not torch.cuda.is_available():
        return Finding("kernels", "note", "not used: they need an NVIDIA GPU")
    if kernels_run_on(torch.empty(1, device="cuda")):
        return Finding("kernels", "ok", f"used on {torch.cuda.get_device_name()}")
    capability = torch.cuda.get_device_capability()
    header = Path(sysconfig.get_config_var("INCLUDEPY") or "", "Python.h")
    reasons = {
        "this PyTorch is built for AMD GPUs": torch.version.hip is not None,
        f"the GPU's compute capability is {capability[0]}.{capability[1]}, they need 8.0": capability < (8, 0),
        "Triton is not installed (pip install triton)": find_spec("triton") is None,
        "there is no C compiler (install gcc)": shutil.which("gcc") is None and shutil.which("clang") is None,
        "Python's headers are missing (install python3-dev)": not header.exists(),
    }
    detail = "not used: " + "; ".join(why for why, holds in reasons.items() if holds)
    return Finding("kernels", "note", detail, "mend what is named, for speed; results are the same without")


def flash_attention() -> Finding:
    """flash-attn, if installed, can be imported."""
    if find_spec("flash_attn") is None:
        return Finding("flash_attention", "note", "not installed; PyTorch's own attention is used")
    try:
        module = import_module("flash_attn")
    except Exception as error:
        detail = f"flash-attn is installed, but cannot be imported: {one_line(error)}"
        return Finding("flash_attention", "failed", detail, "install one built for this PyTorch, or pip uninstall it")
    return Finding("flash_attention", "ok", f"flash-attn {module.__version__}")
