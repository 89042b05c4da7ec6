"""tango.ops.assembly: kept tokens in the order of the video."""

from __future__ import annotations

import torch

from tango.ops.assembly import assemble


def test_groups_are_interleaved() -> None:
    x = torch.arange(6.0)[:, None]
    groups = [torch.tensor([4, 0]), torch.tensor([3])]
    pruned = assemble(groups, [x[group] for group in groups], torch.tensor([0, 4, -1, 3, 4, 3]))
    assert pruned.indices.tolist() == [0, 3, 4]
    assert pruned.features.flatten().tolist() == [0.0, 3.0, 4.0]
    assert pruned.assignment is not None
    assert pruned.assignment.tolist() == [0, 2, -1, 1, 2, 1]


def test_empty_groups_and_gradients_pass() -> None:
    x = torch.rand(4, 2, requires_grad=True)
    groups = [torch.tensor([], dtype=torch.long), torch.tensor([2, 1])]
    pruned = assemble(groups, [x[group] for group in groups], torch.tensor([-1, 1, 2, -1]))
    pruned.features.sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
