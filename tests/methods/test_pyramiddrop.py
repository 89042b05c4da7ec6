"""The layer pruner `pyramiddrop` by itself."""

from __future__ import annotations

import math

import pytest
import torch

from tango.errors import BudgetError, OptionError
from tango.methods.pyramiddrop import PyramidDropPruner
from tango.ops.stages import mean_over_stages
from tests.layer_tokens import random_prompt, with_attention


def kept_by_the_oracle(tokens, count: int) -> list[int]:
    """The last token's attention head by head, and the largest one after the other."""
    (query,), last = tokens.queries[-1:], int(tokens.text[-1])
    heads, groups = query.shape[0], tokens.keys.shape[1]
    mean = [0.0] * len(tokens.hidden)
    for head in range(heads):
        keys = tokens.keys[:, head // (heads // groups)]
        scores = [float(query[head] @ keys[i]) * tokens.scale for i in range(last + 1)]
        total = sum(math.exp(s) for s in scores)
        for i, score in enumerate(scores):
            mean[i] += math.exp(score) / total / heads
    rows = tokens.visual.tolist()
    order = sorted(range(len(rows)), key=lambda m: (-mean[rows[m]], m))
    return sorted(order[:count])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("layer", "count"), [(2, 21), (4, 8), (6, 3)])
def test_equals_the_oracle_at_every_stage(seed, layer, count):
    pruner = PyramidDropPruner(layer=2, num_layers=8, retention_ratio=0.4)
    assert pruner.layers == (2, 4, 6)
    tokens = random_prompt(seed=seed, layer=layer)  # of 54 tokens: 21.6, 8.64, 3.456
    states, kept = pruner(tokens)
    assert kept.tolist() == kept_by_the_oracle(tokens, count)
    assert torch.equal(states, tokens.hidden[tokens.visual[kept]])


def test_by_hand_with_a_tie_and_the_share_of_what_entered():
    x = torch.arange(10.0).view(5, 2)
    tokens = with_attention(x, torch.tensor([0.1, 0.3, 0.1, 0.3, 0.1]), layer=14, counts=(12,) * 7 + (5,) * 7)
    states, kept = PyramidDropPruner()(tokens)
    assert kept.tolist() == [0, 1, 3]  # a quarter of 12; of three equal ones the first
    assert torch.equal(states, x[[0, 1, 3]])


def test_fewer_tokens_than_its_share_all_stay():
    tokens = with_attention(torch.ones(2, 3), torch.tensor([0.5, 0.5]), layer=7, counts=(100,) * 7)
    assert PyramidDropPruner()(tokens)[1].tolist() == [0, 1]


@pytest.mark.parametrize(("layer", "count"), [(7, 3136), (14, 1568), (21, 784)])
def test_counts_of_a_video_of_32_frames(layer, count):
    tokens = with_attention(torch.zeros(6272, 1), torch.rand(6272, generator=torch.Generator().manual_seed(0)))
    assert len(PyramidDropPruner()(with_attention(tokens.hidden[:-1], torch.ones(6272), layer=layer))[1]) == count


@pytest.mark.parametrize(
    ("num_layers", "layers"),
    [(28, (7, 14, 21)), (32, (8, 16, 24)), (36, (9, 18, 27)), (24, (6, 12, 18)), (4, (1, 2, 3)), (3, (1, 2))],
)
def test_stages_lie_at_the_quarters_of_any_llm(num_layers, layers):
    pruner = PyramidDropPruner().for_mean(0.6, num_layers)
    assert pruner.layers == layers
    assert mean_over_stages(layers, [pruner.retention_ratio**s for s in (1, 2, 3)], num_layers) == pytest.approx(0.6)


def test_the_papers_mean_gives_the_papers_ratio():
    assert PyramidDropPruner().for_mean(0.46875, 28).retention_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(("mean", "layers"), [(0.1, (1, 10, 19)), (0.2, (4, 12, 20)), (0.3, (7, 14, 21))])
def test_low_means_move_the_first_stage(mean, layers):
    pruner = PyramidDropPruner().for_mean(mean, 28)
    assert pruner.layers == layers
    assert mean_over_stages(layers, [pruner.retention_ratio**s for s in (1, 2, 3)], 28) == pytest.approx(mean)


def test_refusals():
    with pytest.raises(BudgetError, match="out of reach"):
        PyramidDropPruner().for_mean(0.03, 28)
    with pytest.raises(OptionError, match="layer must be below num_layers 28, got 28"):
        PyramidDropPruner(layer=28)
