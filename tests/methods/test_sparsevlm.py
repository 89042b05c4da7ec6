"""The layer pruner `sparsevlm` by itself."""

from __future__ import annotations

import math

import pytest
import torch

from tango.errors import BudgetError, OptionError
from tango.methods.sparsevlm import SparseVlmPruner, recycling, stage_shares
from tango.ops.stages import mean_over_stages
from tests.layer_tokens import random_prompt, with_attention


def rating(tokens) -> list[float]:
    """Raters one by one, then their attention head by head, summed."""
    hidden, text = tokens.hidden.double().tolist(), tokens.text.tolist()
    resemblance = [0.0] * len(text)
    for v in tokens.visual.tolist():
        products = [math.exp(sum(a * b for a, b in zip(hidden[v], hidden[t], strict=True))) for t in text]
        resemblance = [
            old + p / sum(products) / len(tokens.visual) for old, p in zip(resemblance, products, strict=True)
        ]
    average = sum(resemblance) / len(text)
    raters = [i for i, r in enumerate(resemblance) if r > average] or list(range(len(text)))
    heads, groups = tokens.queries.shape[1], tokens.keys.shape[1]
    total = [0.0] * len(hidden)
    for i in raters:
        for head in range(heads):
            keys = tokens.keys[:, head // (heads // groups)]
            scores = [math.exp(float(tokens.queries[i, head] @ keys[s]) * tokens.scale) for s in range(text[i] + 1)]
            for s, score in enumerate(scores):
                total[s] += score / sum(scores)
    return [total[v] for v in tokens.visual.tolist()]


def clusters_of(states, num_clusters: int) -> list[int]:
    """Density peaks with as many neighbours as clusters, a row itself among them: each row's centre."""
    m, d = states.shape
    x = states.double()
    distance = [[float((x[i] - x[j]).norm()) / d**0.5 for j in range(m)] for i in range(m)]
    density = [math.exp(-sum(sorted(row[j] ** 2 for j in range(m))[:num_clusters]) / num_clusters) for row in distance]
    score = []
    for i in range(m):
        denser = [j for j in range(m) if (-density[j], j) < (-density[i], i)]
        score.append(density[i] * min((distance[i][j] for j in denser), default=math.inf))
    centres = sorted(sorted(range(m), key=lambda i: (-score[i], i))[:num_clusters])
    return [i if i in centres else min(centres, key=lambda c: distance[i][c]) for i in range(m)]


def oracle(tokens, count: int, recycle: bool):
    """Kept tokens with their states."""
    score, M = rating(tokens), len(tokens.visual)
    order = sorted(range(M), key=lambda m: (-score[m], m))
    states = {m: tokens.hidden[tokens.visual[m]] for m in range(M)}
    if not recycle or count == M:
        return {m: states[m] for m in sorted(order[:count])}
    for selected in range(count, 0, -1):  # as many as leave room for the means
        rest = order[selected:]
        candidates = sorted(rest[: int(0.3 * len(rest)) + 1])
        num_means = len(candidates) // 10 + 1
        if selected + num_means <= count:
            break
    else:
        selected, num_means = 1, count - 1
        candidates = sorted(order[1:][: int(0.3 * (M - 1)) + 1])
    kept = {m: states[m] for m in order[:selected]}
    if num_means:
        home = clusters_of(torch.stack([states[m] for m in candidates]), num_means)
        for centre in set(home):
            members = [states[m] for m, h in zip(candidates, home, strict=True) if h == centre]
            kept[candidates[centre]] = torch.stack(members).double().mean(0).to(members[0].dtype)
    return dict(sorted(kept.items()))


@pytest.mark.parametrize("recycle", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("layer", "count"), [(3, 50), (7, 33), (16, 18)])
def test_equals_the_oracle_at_every_stage(seed, recycle, layer, count):
    pruner = SparseVlmPruner(recycle=recycle)  # 300, 200 and 110 of 576
    tokens = random_prompt(frames=8, cells=12, seed=seed, layer=layer)
    states, kept = pruner(tokens)
    expected = oracle(tokens, count, recycle)
    assert kept.tolist() == list(expected)
    torch.testing.assert_close(states, torch.stack(list(expected.values())), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("entered", "count"), [(96, 5), (20, 1), (1000, 52)])
def test_few_or_many_means(entered, count):
    tokens = random_prompt(frames=30, cells=10, seed=5, layer=7, counts=(entered,) * 3 + (300,) * 4)
    expected = oracle(tokens, count, recycle=True)
    states, kept = SparseVlmPruner(retention_ratio=1 / 9)(tokens)
    assert kept.tolist() == list(expected)
    torch.testing.assert_close(states, torch.stack(list(expected.values())), rtol=1e-5, atol=1e-6)


def test_raters_are_what_resembles_the_video():
    x = torch.tensor([[1.0, 0.0]] * 4)
    words = torch.tensor([[3.0, 0.0], [0.0, 9.0]])  # only the first resembles the video
    keys = torch.zeros(6, 1, 2)
    keys[1, 0], keys[2, 0] = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 9.0])
    tokens = with_attention(
        x, torch.ones(4), layer=16, hidden=torch.cat([x, words]), text=torch.tensor([4, 5]),
        queries=torch.eye(2)[:, None], keys=keys,
    )  # fmt: skip
    one = SparseVlmPruner(retention_ratio=1 / 3, recycle=False)  # round(110 / 576 * 4) = 1
    assert one(tokens)[1].tolist() == [1]
    equal = tokens.hidden.clone()
    equal[4:] = 1.0
    both = with_attention(
        x, torch.ones(4), layer=16, hidden=equal, text=torch.tensor([4, 5]), queries=torch.eye(2)[:, None], keys=keys
    )  # equal words: none is above average, so all rate, and the second looks harder
    assert one(both)[1].tolist() == [2]


@pytest.mark.parametrize("nominal", [64, 96, 128, 192])
def test_published_counts(nominal):
    table = {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)}
    pruner = SparseVlmPruner(retention_ratio=nominal / 576)
    counts = [len(pruner(random_prompt(frames=24, cells=24, layer=layer))[1]) for layer in (3, 7, 16)]
    assert tuple(counts) == table[nominal]


def test_shares_between_and_beyond_the_published_ones():
    assert stage_shares(32 / 576) == pytest.approx([33 / 576, 15 / 576, 8.5 / 576])
    assert stage_shares(80 / 576) == pytest.approx([152 / 576, 39 / 576, 21.5 / 576])
    assert stage_shares(1.0) == pytest.approx([1, 1, 1])
    assert stage_shares(1e-9) == pytest.approx([0, 0, 0], abs=1e-8)


def test_recycled_means_are_within_the_count():
    for M in range(1, 200):
        for K in range(1, M + 1):
            candidates, means = recycling(M, K)
            dropped = M - (K - means)
            assert 0 <= means <= candidates <= dropped
            assert K - means >= 1
            if K < M and means < K - 1:
                assert (candidates, means) == (int(0.3 * dropped) + 1, (int(0.3 * dropped) + 1) // 10 + 1)


@pytest.mark.parametrize(("mean", "first"), [(0.1, 1), (0.12, 2), (0.2, 3), (0.35, 3), (0.6, 3)])
@pytest.mark.parametrize("num_layers", [28, 32])
def test_the_mean_is_hit(mean, first, num_layers):
    pruner = SparseVlmPruner().for_mean(mean, num_layers)
    assert mean_over_stages(pruner.layers, stage_shares(pruner.retention_ratio), num_layers) == pytest.approx(mean)
    if num_layers == 28:
        assert pruner.layers == (first, 7, 16)


def test_refusals():
    with pytest.raises(BudgetError, match="out of reach"):
        SparseVlmPruner().for_mean(0.03, 28)
    with pytest.raises(BudgetError, match=r"layer must lie in 1\.\.3 for an LLM of 4 layers, got 16"):
        SparseVlmPruner().for_mean(0.5, 4)
    with pytest.raises(OptionError, match=r"must increase, got \(7, 7, 16\)"):
        SparseVlmPruner(layer=7)
