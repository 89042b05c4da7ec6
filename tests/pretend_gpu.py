"""A device that is not there: tensors that say "meta", compute on the CPU, and note whenever the host would wait.

Real models run from pixels to tokens, with real values, on any machine, under `no_grad`. The host waits where it reads
a value, or a shape that follows from values, and where it copies from memory that is not pinned. Operators that mix
tensors of both sides fail, as they would.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")  # the one device type without a driver
READING = {  # their result, or its shape, depends on values in device memory
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "argwhere", "masked_select", "bincount",
    "unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor of the pretended device; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, _args: Any = (), _kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} runs on a tensor of the pretended device outside of its context")

    def _values(self) -> Tensor:
        return self.cpu()  # noted as a wait

    def tolist(self) -> Any:
        return self._values().tolist()

    def item(self) -> Any:
        return self._values().item()

    def __bool__(self) -> bool:
        return bool(self._values())

    def __int__(self) -> int:
        return int(self._values())

    def __float__(self) -> float:
        return float(self._values())

    def __index__(self) -> int:
        return self._values().__index__()


class PretendGpu(TorchDispatchMode):
    """While entered, "meta" means the pretended device. `waits` lists what the host would wait for, and who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.marks: dict[str, int] = {}

    def mark(self, name: str) -> None:
        """Note how many waits there were when something happened first."""
        self.marks.setdefault(name, len(self.waits))

    def wait(self, what: str) -> None:
        """Note that the host waits."""
        frames = [
            f for f in traceback.extract_stack() if "/torch/" not in f.filename and "pretend_gpu" not in f.filename
        ]
        at = " < ".join(f"{f.filename.rpartition('site-packages/')[2]}:{f.lineno}" for f in reversed(frames[-4:]))
        self.waits.append(f"{what} at {at}")

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "_fused_sdp_choice":
            return 0  # by plain products
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if name not in ("_to_copy", "copy_", "index", "index_put", "index_put_", "_unsafe_index"):
            kinds = {type(x) is OnDevice for x in tensors if x.dim()}
            assert len(kinds) < 2, f"{func} got tensors of the host and of the device"
        target = kwargs.get("device")
        from_device = any(isinstance(x, OnDevice) for x in tensors)
        to_device = from_device if target is None else torch.device(target).type == "meta"
        self._note(func, name, args, kwargs, from_device)
        if target is not None:
            kwargs["device"] = "cpu"
        host_args, host_kwargs = tree_map_only(OnDevice, lambda x: x.inner, (args, kwargs))
        if name == "_to_copy" and from_device != to_device:
            host_kwargs.pop("non_blocking", None)
            result = func(*host_args, **host_kwargs)
            result = result.clone() if result is host_args[0] else result
        else:
            if name == "histc":  # of whole numbers on a GPU alone
                host_args = (host_args[0].float(), *host_args[1:])
            result = func(*host_args, **host_kwargs)
            if name == "histc":
                result = result.to(args[0].dtype)
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
            return args[0]  # in place
        return tree_map_only(Tensor, OnDevice, result) if to_device else result

    def _note(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], from_device: bool) -> None:
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            target = kwargs.get("device") if name == "_to_copy" else args[0].device
            crosses = target is not None and torch.device(target).type != source.device.type
            if crosses and source.device.type == "meta":
                self.wait(f"{func} to the host")
            elif crosses and not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])):
                self.wait(f"{func} from memory that is not pinned")
            return
        if not from_device:
            return
        by_mask = name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_") and any(
            isinstance(index, OnDevice) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in READING or by_mask or unsized:
            self.wait(str(func))


@contextmanager
def pretend_gpu(model: nn.Module) -> Iterator[PretendGpu]:
    """While entered, this model lies on the pretended device. It is not given back: make a new one for other tests."""
    gpu = PretendGpu()
    make = torch.tensor

    def tensor(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        if device is None or torch.device(device).type == "cpu":
            return made
        if made.numel():
            gpu.wait("torch.tensor from memory that is not pinned")
        return OnDevice(made)

    with (
        mock.patch.object(torch, "tensor", tensor),
        gpu,
    ):
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    if value is not None:
                        moved = OnDevice(value.detach())
                        store[name] = nn.Parameter(moved, requires_grad=False) if store is module._parameters else moved
        yield gpu
