"""The whole pruner with kernels in every place where a GPU would have them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch

from tango.lab.bench.synthetic import synthetic_tokens
from tango.methods import build_pruner

pytest.importorskip("triton", reason="the kernels are Triton's; `pip install triton`")


def pruned(method: str, data: str, dtype: str) -> list[torch.Tensor]:
    """Indices, assignment and features without kernels, then with them; runs where Triton interprets its kernels."""
    from tango.batched import merging, rotation
    from tango.batched.kernels import rotation as kernel

    tokens = synthetic_tokens(data, 6, (3, 4), 48, dtype=getattr(torch, dtype))
    pruner = build_pruner(method, retention_ratio=0.3)
    results = [pruner(tokens)]
    with ExitStack() as stack:
        for module in (merging, rotation):
            stack.enter_context(mock.patch.object(module, "kernels_run_on", return_value=True))
        called = stack.enter_context(mock.patch.object(kernel, "gather_rotated", side_effect=kernel.gather_rotated))
        results.append(pruner(tokens))
    assert called.called
    return [part for result in results for part in (result.indices, result.assignment, result.features.float())]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("data", ["video", "iid"])
@pytest.mark.parametrize("method", ["tango", "tango-release"])
def test_kernels_change_nothing(interpreted: Callable[..., Any], method: str, data: str, dtype: str) -> None:
    indices, assignment, features, *ours = interpreted(f"{__name__}.pruned", method, data, dtype)
    assert torch.equal(indices, ours[0])
    assert torch.equal(assignment, ours[1])
    torch.testing.assert_close(features, ours[2], atol=0.04 if dtype == "bfloat16" else 1e-5, rtol=1e-2)
