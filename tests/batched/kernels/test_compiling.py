"""Kernels compiled for GPUs that need not be there: do they use the tensor cores, and do they fit the registers?"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tango.batched.kernels import merging, rotation  # noqa: E402

TYPES = {  # of the arguments of all kernels
    **dict.fromkeys(("plan", "key", "rank", "centres", "nearest", "members", "bounds", "anchors"), "*i64"),
    **dict.fromkeys(("spans", "tokens"), "*i64"),
    **dict.fromkeys(("rows", "squares", "exponent", "density", "inverse_norms", "out"), "*fp32"),
    **dict.fromkeys(("time", "row", "column"), "*fp32"),
    **dict.fromkeys(("x", "merged"), "*bf16"),
    **dict.fromkeys(("width", "stride", "H", "W", "out_width", "time_half", "row_half", "column_half"), "i32"),
    "weight": "fp32",
}
ARCHITECTURES = [80, 90]
MULTIPLY = {80: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 90: "wgmma.mma_async.sync.aligned.m64n64k8"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compiled(kernel: Any, architecture: int, **constants: Any) -> Any:
    signature = {name: "constexpr" if name in constants else TYPES[name] for name in kernel.arg_names}
    # What Triton finds out at launch: tensors are aligned, and the width of real models is a multiple of 16.
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*") or name == "width"]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"enable_fp_fusion": True}
    )  # fmt: skip


def stack_bytes(kernel: Any, tmp_path: Path) -> int:
    """What a thread keeps in memory because it does not fit into registers."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(stack)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "shape"), [(merging.average, merging.SHAPE), (rotation.rotate, rotation.SHAPE)])
def test_kernels_that_only_move_memory_stay_in_registers(
    kernel: Any, shape: dict[str, int], architecture: int, tmp_path: Path
) -> None:
    assert stack_bytes(compiled(kernel, architecture, **shape), tmp_path) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging_reads_whole_vectors(architecture: int) -> None:
    kernel = compiled(merging.average, architecture, **merging.SHAPE)
    assert re.search(r"ld\.global\.(v4\.b32|v8\.b16)", kernel.asm["ptx"])
