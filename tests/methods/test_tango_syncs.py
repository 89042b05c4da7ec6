"""How often the Tango pruner makes the host wait for the device, and how many operators it launches.

Meta tensors have a device and a shape but no memory: they take the GPU's way through the code, at full size, on any
machine, and refuse whatever would need to read a value. The one permitted read, of similarities, is answered by hand.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tango.batched import clustering as batched_clustering
from tango.batched import engine as engine_module
from tango.batched import merging as batched_merging
from tango.batched import rotation as batched_rotation
from tango.containers import VisualTokens
from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods import build_pruner
from tango.ops import clustering as clustering_module
from tango.ops import device as device_module
from tests.live_bytes import LiveBytes

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")

from tango.batched.kernels import merging as merging_kernel
from tango.batched.kernels import rotation as rotation_kernel

GRID, DIM = (14, 14), 3584
READING_OPS = {  # their result, or its shape, depends on values in device memory
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "argwhere", "masked_select", "bincount",
    "unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive",
}  # fmt: skip
FREE_OPS = {"empty", "empty_like", "new_empty", "empty_strided", "lift_fresh", "_unsafe_view", "_reshape_alias"}
READING_METHODS = ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Spy(TorchDispatchMode):
    """Counts operators that launch work, and lists those that read from the device or wait for a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.num_launches = 0
        self.largest_bytes = 0  # of any tensor
        self.reads: list[str] = []
        self.uploads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten":
            self.num_launches += not (func.is_view or func.overloadpacket.__name__ in FREE_OPS)
            self._inspect(func, args, kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.largest_bytes = max(self.largest_bytes, out.numel() * out.element_size())
        return out

    def kernel(self) -> Any:
        """Stands for one of Triton's, which no mode sees and nothing here could run."""

        def launched(_: Any) -> Callable[..., None]:
            self.num_launches += 1
            return lambda *_, **__: None

        kernel = mock.MagicMock()
        kernel.__getitem__.side_effect = launched
        return kernel

    def watch(self, tensor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`torch.tensor`, whose blocking copy to the device no mode sees when the device is meta."""

        def watched(*args: Any, device: torch.device | str = "cpu", **kwargs: Any) -> torch.Tensor:
            if torch.device(device).type != "cpu":
                self.uploads.append("torch.tensor")
            return tensor(*args, device=device, **kwargs)

        return watched

    def _inspect(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        unsized_repeat = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in READING_OPS or by_mask or unsized_repeat:
            self.reads.append(str(func))
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], kwargs.get("device")) if name == "_to_copy" else (args[1], args[0].device)
            non_blocking = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
            if target is not None and target.type != source.device.type:
                if target.type == "cpu":
                    self.reads.append(str(func))
                elif not non_blocking:
                    self.uploads.append(str(func))


@contextmanager
def counted_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the calls of every tensor method that hands values to the host."""
    calls: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in READING_METHODS:
            original = getattr(torch.Tensor, name)

            def counted(*args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
                calls[_name] += 1
                return _original(*args, **kwargs)

            patch.setattr(torch.Tensor, name, counted)
        yield calls


def similarity_table(segments: Sequence[int], num_static: int) -> np.ndarray:
    """Of a video whose segments have these lengths, the first positions being static in each."""
    table = np.zeros((sum(segments) - 1, GRID[0] * GRID[1]), dtype=np.float32)
    start = 0
    for length in segments:
        table[start : start + length - 1, :num_static] = 0.95
        start += length
    return table


class HostCopy:
    """Stands for what `similarity.cpu()` returns."""

    def __init__(self, table: np.ndarray):
        self._table = table

    def numpy(self) -> np.ndarray:
        return self._table


def spy_on_meta(
    monkeypatch: pytest.MonkeyPatch,
    segments: Sequence[int],
    *,
    num_static: int = 60,
    kernels: bool = True,
    **options: Any,
) -> tuple[Spy, int]:
    """Prune tokens without values, kernels counted but not run; returns the spy and how often the table was read."""
    table = similarity_table(segments, num_static)
    T, N = sum(segments), GRID[0] * GRID[1]
    pruner = build_pruner(options.pop("method", "tango"), **options)
    if options.get("segmentation") == "fastvid":
        table = np.concatenate([table, table.max(axis=1, keepdims=True)], axis=1)
    reads = []

    def cpu(tensor: torch.Tensor) -> HostCopy:
        assert tensor.shape == table.shape
        reads.append(tensor)
        return HostCopy(table)

    tokens = VisualTokens(
        features=torch.empty(T, N, DIM, device="meta", dtype=torch.float16),
        grid=GRID,
        timestamps_s=torch.arange(T, dtype=torch.float64),  # adapters leave them on the host
        saliency=torch.empty(T, N, device="meta"),
        sink_positions=(3, 11),
    )
    with monkeypatch.context() as patch, Spy() as spy:
        patch.setattr(torch, "tensor", spy.watch(torch.tensor))
        patch.setattr(torch.Tensor, "cpu", cpu)
        patch.setattr(clustering_module, "gram", lambda x: x @ x.mT)  # what it does on a GPU
        for module in (batched_rotation, batched_merging):
            patch.setattr(module, "kernels_run_on", lambda x: kernels and x.is_meta)
        patch.setattr(rotation_kernel, "rotate", spy.kernel())
        patch.setattr(merging_kernel, "average", spy.kernel())
        pruned = pruner.prune(tokens)
    assert pruned.indices.device.type == pruned.features.device.type == "meta"
    assert len(pruned.indices) == len(pruned.features) > 0
    return spy, len(reads)


CASES = {
    "mixed": ((1, 1, 5, 1, 8, 3, 1, 12), {}),
    "single frames": ((1,) * 32, {}),
    "one segment": ((32,), {}),
    "all static": ((6, 6), {"num_static": 196}),
    "keep most": ((1, 5, 2), {"retention_ratio": 0.9}),
    "no context": ((1, 5, 2), {"context_ratio": 0.0}),
    "exact": ((1, 5, 1, 9), {"exact_budget": True}),
    "fastvid": ((4, 4, 1, 1, 1, 4, 1, 4), {"segmentation": "fastvid"}),
    "paper": ((1, 5, 1, 9), {"method": "tango-paper"}),
    "release": ((1, 5, 1, 9), {"method": "tango-release"}),
}


@pytest.mark.parametrize("case", CASES)
def test_reads_the_device_once(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    segments, options = CASES[case]
    spy, num_reads = spy_on_meta(monkeypatch, segments, **options)
    assert num_reads == 1
    assert spy.reads == []


@pytest.mark.parametrize("case", CASES)
def test_never_waits_for_an_upload(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """A blocking copy to the device makes the host wait for all work queued before it."""
    segments, options = CASES[case]
    spy, _ = spy_on_meta(monkeypatch, segments, **options)
    assert spy.uploads == []


@pytest.mark.parametrize("data", ["iid", "video"])
@pytest.mark.parametrize("segmentation", ["holitom", "fastvid"])
def test_reads_real_values_once(monkeypatch: pytest.MonkeyPatch, data: str, segmentation: str) -> None:
    """The same on tensors with contents, where every branch that depends on them is really taken."""
    tokens = synthetic_tokens(data, 12, (4, 5), 48)
    pruner = build_pruner("tango", retention_ratio=0.3, segmentation=segmentation)
    with counted_methods(monkeypatch) as calls, Spy() as spy:
        pruner.prune(tokens)
    assert calls == {"cpu": 1, "numpy": 1}  # numpy() on the copy costs nothing
    assert spy.reads == []


def scenes(num_frames: int, seed: int = 0) -> tuple[int, ...]:
    """Segments like those of a film: of 1 to 15 frames."""
    random, lengths = np.random.default_rng(seed), []
    while (left := num_frames - sum(lengths)) > 0:
        lengths.append(min(left, int(random.integers(1, 16))))
    return tuple(lengths)


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("num_frames", [32, 64, 128, 256])
@pytest.mark.parametrize("method", ["tango", "tango-paper", "tango-release"])
@pytest.mark.parametrize("ratio", [0.1, 0.2])
def test_at_most_200_launches_at_32_frames_and_400_up_to_256(
    monkeypatch: pytest.MonkeyPatch, method: str, ratio: float, num_frames: int
) -> None:
    for segments in ((1,) * num_frames, scenes(num_frames), scenes(num_frames, seed=1), (32,) * (num_frames // 32)):
        for num_static in (20, 110):
            options = {"method": method, "retention_ratio": ratio}
            spy, num_reads = spy_on_meta(monkeypatch, segments, num_static=num_static, **options)
            assert spy.num_launches <= (200 if num_frames == 32 else 400), segments
            assert num_reads == 1


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("segments", [(1,), (4,), (1, 1, 7)], ids=str)
def test_number_of_operators_is_independent_of_the_number_of_segments(
    monkeypatch: pytest.MonkeyPatch, segments: tuple[int, ...]
) -> None:
    monkeypatch.setattr(
        batched_clustering, "_BUCKET_COST", 1
    )  # else more work is worth more buckets, up to their limit
    counts = {n: spy_on_meta(monkeypatch, segments * n)[0].num_launches for n in (4, 8, 16)}
    assert len(set(counts.values())) == 1, counts


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("segments", [(1,) * 1024, scenes(1024), (1024,)], ids=len)
def test_a_gpu_takes_a_longer_video_in_turns(monkeypatch: pytest.MonkeyPatch, segments: tuple[int, ...]) -> None:
    """Operators grow slowly beyond 256 frames. No tensor grows with the video, but for what is kept, a
    tenth, and for what changes within one segment, a quarter in the last case."""
    spy, _ = spy_on_meta(monkeypatch, segments, num_static=150)
    assert spy.num_launches <= 4 * 256
    assert spy.largest_bytes <= 1 << 30


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize("num_static", [20, 150])
@pytest.mark.parametrize("segments", [(1,) * 1024, scenes(1024), (1024,)], ids=len)
def test_a_gpu_needs_at_most_4_gb_for_1024_frames(
    monkeypatch: pytest.MonkeyPatch, segments: tuple[int, ...], num_static: int
) -> None:
    """Beside the input, with the kernels or without."""
    with LiveBytes([]) as live:
        spy_on_meta(monkeypatch, segments, num_static=num_static, kernels=num_static == 20)
    assert live.peak - 1024 * GRID[0] * GRID[1] * DIM * 2 <= 4e9


@pytest.mark.usefixtures("unchecked_annotations")
def test_a_gpu_needs_a_copy_and_the_distances_at_32_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scenes: a float32 copy (90 MB) and 42 MB. Of one segment: 122 MB with 60 of 196 positions static, 187 with 20,
    since all distances are held."""
    short, one = [(1,) * 32, scenes(32), scenes(32, seed=1)], [(32,)]
    for num_static, cases, most in ((20, short, 140e6), (60, [*short, *one], 130e6), (20, one, 190e6)):
        for segments in cases:
            with LiveBytes([]) as live:
                spy_on_meta(monkeypatch, segments, num_static=num_static)
            assert live.peak - 32 * GRID[0] * GRID[1] * DIM * 2 <= most, segments


def test_number_of_operators_is_independent_of_single_frames_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "CPU_BYTES", 1 << 40)
    monkeypatch.setattr(engine_module, "_CPU_BYTES", 1 << 40)
    monkeypatch.setattr(clustering_module, "gram", lambda x: x @ x.mT)  # on a CPU, it is one set at a time
    counts = {}
    for T in (4, 8):
        tokens = synthetic_tokens("iid", T, (4, 4), 48)
        with Spy() as spy:
            build_pruner("tango", retention_ratio=0.3).prune(tokens)
        counts[T] = spy.num_launches
    assert counts[4] == counts[8]


def test_the_spy_sees_what_it_is_meant_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(4.0)
    with counted_methods(monkeypatch) as calls, Spy() as spy:
        x[x > 1]
        x.nonzero()
        bool(x.sum() > 0)
        x.max().item()
        x.cpu().tolist()
    assert calls == {"__bool__": 1, "item": 1, "cpu": 1, "tolist": 1}
    assert Counter(spy.reads)["aten.nonzero.default"] == 1
    assert Counter(spy.reads)["aten._local_scalar_dense.default"] >= 2
    assert any("index" in name for name in spy.reads)
    with Spy() as spy:
        spy.watch(torch.tensor)([1, 2], device="meta")
        torch.empty(2, device="meta").copy_(torch.zeros(2))
        torch.zeros(2).to("meta", non_blocking=True)
        with pytest.raises(NotImplementedError, match="meta"):
            torch.empty(2, device="meta").cpu()
    assert len(spy.uploads) == 2
    assert len(spy.reads) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_is_waited_for_once() -> None:
    pruner = build_pruner("tango")
    tokens = synthetic_tokens("video", 32, GRID, 256, device="cuda")
    pruner.prune(tokens)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            pruner.prune(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(warning.message) for warning in caught) == 1
