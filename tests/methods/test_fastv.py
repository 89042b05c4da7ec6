"""tango.methods.fastv: what the last token attends to, and how the ratio follows from the mean."""

from __future__ import annotations

import pytest
import torch

from tango.errors import BudgetError
from tango.methods.fastv import FastvPruner
from tests.layer_tokens import random_prompt, with_attention


def test_by_hand():
    x = torch.arange(10.0).view(5, 2)
    states, kept = FastvPruner(retention_ratio=0.6)(with_attention(x, torch.tensor([0.1, 0.3, 0.05, 0.3, 0.25])))
    assert kept.tolist() == [1, 3, 4]
    assert torch.equal(states, x[[1, 3, 4]])


def test_equal_attention_keeps_the_earlier_token():
    _, kept = FastvPruner(retention_ratio=0.4)(with_attention(torch.ones(5, 2), torch.ones(5)))
    assert kept.tolist() == [0, 1]


def test_equals_loops_over_heads():
    tokens = random_prompt(heads=6, groups=2)
    last, attention = tokens.queries[-1], torch.zeros(len(tokens.hidden))
    for head in range(6):
        attention += (tokens.keys[:, head // 3] @ last[head] * tokens.scale).softmax(0) / 6
    received = attention[tokens.visual].tolist()
    expected = sorted(sorted(range(54), key=lambda i: -received[i])[:16])
    states, kept = FastvPruner(retention_ratio=0.3)(tokens)
    assert kept.tolist() == expected
    assert torch.equal(states, tokens.hidden[tokens.visual[kept]])


@pytest.mark.parametrize(
    ("mean", "ratio", "count"), [(0.1, 0.030769, 193), (0.15, 0.084615, 531), (0.2, 0.138462, 868)]
)
def test_counts_for_32_frames_of_196_tokens(mean, ratio, count):
    pruner = FastvPruner().for_mean(mean, 28)
    assert pruner.retention_ratio == pytest.approx(ratio, abs=1e-6)
    states, _ = pruner(with_attention(torch.zeros(6272, 1), torch.rand(6272)))
    assert len(states) == count


def test_a_mean_below_what_the_full_layers_take_is_out_of_reach():
    with pytest.raises(
        BudgetError, match=r"first 3 layers see all tokens, which alone makes 0\.1071; prune at layer 2"
    ):
        FastvPruner(layer=3).for_mean(0.1, 28)
    with pytest.raises(BudgetError, match="prune pre-LLM"):
        FastvPruner(layer=1).for_mean(0.03, 28)
    with pytest.raises(BudgetError, match="must lie in"):
        FastvPruner().for_mean(0, 28)
