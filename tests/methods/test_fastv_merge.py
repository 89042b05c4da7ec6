"""The layer pruner `fastv-merge` by itself."""

from __future__ import annotations

import torch

from tango.methods.fastv_merge import FastvMergePruner
from tests.layer_tokens import with_attention


def test_fastv_merge_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 3.0], [2.0, 0.1]])
    before = x.clone()
    states, indices = FastvMergePruner(layer=1, retention_ratio=0.4)(
        with_attention(x, torch.tensor([0.1, 0.2, 0.5, 0.1, 0.1]))
    )
    assert indices.tolist() == [1, 2]
    mean = (x[0] + x[1] + x[4]) / 3
    torch.testing.assert_close(states, torch.stack([0.6 * x[1] + 0.4 * mean, 0.6 * x[2] + 0.4 * (x[2] + x[3]) / 2]))
    assert torch.equal(x, before)
    one, index = FastvMergePruner(layer=1, retention_ratio=0.01, merge_weight=1)(with_attention(x, torch.zeros(5)))
    assert index.tolist() == [0]
    assert torch.equal(one, x[:1])


def test_at_least_one_token_stays_and_all_stay_at_ratio_one():
    x, attention = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1)
    assert FastvMergePruner(retention_ratio=0.5)(with_attention(x, attention))[1].tolist() == [0]
    states, indices = FastvMergePruner(retention_ratio=1.0)(with_attention(x, attention))
    assert torch.equal(states, x)
    assert indices.tolist() == [0]


def test_kept_tokens_without_members_stay_bit_for_bit():
    x = torch.eye(6, dtype=torch.bfloat16) * 3.3
    x[5] = x[0]
    attention = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    states, indices = FastvMergePruner(retention_ratio=5 / 6)(with_attention(x, attention))
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(states[1:], x[1:5])
    assert states.dtype == torch.bfloat16
