"""tango.methods.holitom_merge: dropped tokens are folded in one after the other."""

from __future__ import annotations

import pytest
import torch

from tango.methods.holitom_merge import HolitomMergePruner
from tests.layer_tokens import random_prompt, with_attention


def by_loops(x, attention, count):
    """The release's order: each dropped token in turn halves the kept state it is most like."""
    order = sorted(range(len(x)), key=lambda i: -float(attention[i]))
    kept, dropped = sorted(order[:count]), sorted(order[count:])
    states = {i: x[i].clone() for i in kept}
    for i in dropped:
        cosines = [float(torch.cosine_similarity(x[i], x[j], dim=0)) for j in kept]
        target = kept[cosines.index(max(cosines))]
        states[target] = (states[target] + x[i]) / 2
    return torch.stack([states[i] for i in kept]), kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.5, 0.9])
def test_equals_loops(seed, ratio):
    random = torch.Generator().manual_seed(seed)
    x, attention = torch.randn(60, 5, generator=random), torch.rand(60, generator=random)
    states, kept = HolitomMergePruner(retention_ratio=ratio)(with_attention(x, attention))
    expected, rows = by_loops(x, attention, max(1, round(60 * ratio)))
    assert kept.tolist() == rows
    torch.testing.assert_close(states, expected)


def test_by_hand():
    x = torch.tensor([[4.0, 0.0], [8.0, 0.0], [0.0, 1.0], [16.0, 0.0], [32.0, 0.0]])
    states, kept = HolitomMergePruner(retention_ratio=0.4)(with_attention(x, torch.tensor([5.0, 1.0, 4.0, 1.0, 1.0])))
    assert kept.tolist() == [0, 2]
    assert torch.equal(states, torch.tensor([[(((4 + 8) / 2 + 16) / 2 + 32) / 2, 0], [0, 1]]))


def test_kept_tokens_without_members_stay_bit_for_bit():
    x = torch.tensor([[3.3, 0.0], [0.0, 1.7], [-1.1, 0.1], [3.2, 0.1]], dtype=torch.bfloat16)
    states, kept = HolitomMergePruner(retention_ratio=0.75)(with_attention(x, torch.tensor([4.0, 3.0, 2.0, 1.0])))
    assert kept.tolist() == [0, 1, 2]
    assert torch.equal(states[1:], x[1:3])
    assert not torch.equal(states[0], x[0])


def test_hundreds_of_members_do_not_overflow():
    tokens = random_prompt(frames=40, cells=50)
    states, kept = HolitomMergePruner(retention_ratio=1e-6)(tokens)
    assert len(kept) == 1
    assert states.isfinite().all()


def test_the_prompt_of_the_paper_keeps_384_of_769():
    states, _ = HolitomMergePruner()(with_attention(torch.randn(769, 2), torch.rand(769)))
    assert len(states) == 384
