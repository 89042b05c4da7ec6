"""The layer pruner `framefusion` by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tango.errors import BudgetError, OptionError
from tango.methods.framefusion import FrameFusionPruner, merge_runs, similarity_to_predecessor
from tests.layer_tokens import random_prompt, with_attention
from tests.methods.test_pyramiddrop import kept_by_the_oracle


def cosine(a, b) -> float:
    """In double precision, and so coarse that equal pairs are equally alike."""
    return round(float(torch.cosine_similarity(a.double(), b.double(), dim=0)) * 2**18) / 2**18


class Oracle:
    """The method with a memory, token by token: what the pruner works out from counts, this one remembers."""

    def __init__(self, pruner: FrameFusionPruner, entered: int):
        self.pruner, self.entered, self.spent, self.doing = pruner, entered, entered, "merging"
        self.log: list[str] = []

    def __call__(self, tokens):
        L, n = self.pruner.num_layers, len(tokens.visual)
        allowed = (self.pruner.retention_ratio * L * self.entered - self.spent) / (L - tokens.layer)
        states = {m: [tokens.hidden[v]] for m, v in enumerate(tokens.visual.tolist())}
        if self.doing == "cutting":
            states = self.cut(tokens, states, allowed)
        elif self.doing == "merging":
            states = self.merge(tokens, states, allowed, n)
        self.log.append(self.doing if len(states) < n else "-")
        self.doing = self.next
        self.spent += len(states)
        return torch.stack([torch.stack(s).double().mean(0).float() for s in states.values()]), list(states)

    next = "merging"

    def cut(self, tokens, states, allowed):
        self.next, self.doing = "done", "cutting"
        return {m: states[m] for m in kept_by_the_oracle(tokens, min(len(states), max(1, round(allowed))))}

    def merge(self, tokens, states, allowed, n):
        cells, hidden = tokens.cells.tolist(), [s[0] for s in states.values()]
        before = {m: max((p for p in range(m) if cells[p] == cells[m]), default=None) for m in states}
        alike = {m: cosine(hidden[m], hidden[p]) for m, p in before.items() if p is not None}
        joining = sorted((m for m in alike if alike[m] >= self.pruner.merge_threshold), key=lambda m: (-alike[m], m))
        most = max(0, n - max(1, math.ceil(allowed)))
        if len(joining) >= most:
            joining, self.next = joining[:most], "done"
        else:
            L, later = self.pruner.num_layers, self.spent + n - len(joining)
            left = self.pruner.retention_ratio * L * self.entered - later
            if tokens.layer == L - 1 or left / (L - tokens.layer - 1) < allowed / 2:
                return self.cut(tokens, states, allowed)
            self.next = "cutting" if len(joining) / n < self.pruner.least_merged else "merging"
        home: dict[int, int] = {}
        for m in states:
            home[m] = home[before[m]] if m in joining else m
        return {m: [hidden[k] for k in states if home[k] == m] for m in states if home[m] == m}


def similar_frames(noise: float, seed: int, frames: int = 6, cells: int = 9):
    """A prompt whose frames resemble each other, each position to its own degree."""
    tokens = random_prompt(frames, cells, seed=seed, layer=1)
    random = torch.Generator().manual_seed(seed)
    still = torch.randn(1, cells, 16, generator=random) + torch.zeros(frames, 1, 1)
    degree = torch.linspace(0.3, 2, cells)[:, None] * noise
    hidden = tokens.hidden.clone()
    hidden[tokens.visual] = (still + degree * torch.randn(frames, cells, 16, generator=random)).flatten(0, 1)
    return replace(tokens, hidden=hidden)


def run(pruner, oracle, tokens, seed: int) -> list[int]:
    """Through all layers, which change the states a little; both must agree at every one."""
    random = torch.Generator().manual_seed(seed)
    before, M = int(tokens.visual[0]), len(tokens.visual)
    counts = [M]
    for layer in pruner.layers:
        tokens = replace(tokens, layer=layer, counts=tuple(counts))
        states, kept = pruner(tokens)
        expected, rows = oracle(tokens)
        assert kept.tolist() == rows
        torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-6)
        counts.append(len(kept))
        stays = torch.ones(len(tokens.hidden), dtype=torch.bool)
        stays[tokens.visual] = False
        stays[tokens.visual[kept]] = True
        hidden = tokens.hidden.clone()
        hidden[tokens.visual[kept]] = states
        hidden = hidden[stays] * 1.1 + 0.3 * torch.randn(int(stays.sum()), 16, generator=random)
        last = torch.arange(int(stays.sum()) - len(tokens.text), int(stays.sum()))
        tokens = replace(
            tokens, hidden=hidden, keys=tokens.keys[stays] + torch.randn(len(hidden), 2, 8, generator=random),
            visual=before + torch.arange(len(kept)), text=last, frames=tokens.frames[kept], cells=tokens.cells[kept],
        )  # fmt: skip
    return counts


CASES = {  # noise, mean, layers, and what comes last
    "no two alike": (9.0, 0.3, 28, "cutting"),
    "all alike": (0.0, 0.3, 28, "merging"),
    "some alike": (0.6, 0.3, 28, "cutting"),
    "budget met by merging": (0.25, 0.3, 12, "merging"),
    "low mean": (9.0, 0.1, 28, "cutting"),
    "high mean": (0.6, 0.8, 28, "merging"),
    "two layers": (9.0, 0.7, 2, "cutting"),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_equals_an_oracle_with_a_memory(case, seed):
    noise, mean, num_layers, last = CASES[case]
    pruner = FrameFusionPruner().for_mean(mean, num_layers)
    tokens = similar_frames(noise, seed)
    oracle = Oracle(pruner, len(tokens.visual))
    counts = run(pruner, oracle, tokens, seed)
    events = [event for event in oracle.log if event != "-"]
    assert events[-1] == last
    assert (case == "some alike") == (events[:2] == ["merging", "merging"])
    assert len(counts) == num_layers
    assert abs(sum(counts) / (num_layers * counts[0]) - mean) <= 1 / counts[0]


def prompt_of(rows, cells, **changes):
    x = torch.tensor(rows)
    return with_attention(x, torch.ones(len(x)), cells=torch.tensor(cells), **changes)


def test_runs_by_hand():
    a, b, c = [1.0, 0.0], [0.0, 1.0], [3.0, 0.3]
    x = torch.tensor([a, b, c, b, a, c])
    cells = torch.tensor([0, 1, 0, 1, 0, 1])  # 0: a c a, 1: b b c
    similarity = similarity_to_predecessor(x, cells)
    near, far = 1 / 1.01**0.5, 0.1 / 1.01**0.5
    infinite = -math.inf
    torch.testing.assert_close(similarity, torch.tensor([infinite, infinite, near, 1.0, near, far]), rtol=0, atol=1e-5)
    states, kept = merge_runs(x, cells, similarity >= 0.6, 3)
    assert kept.tolist() == [0, 1, 5]
    torch.testing.assert_close(states, torch.stack([(x[0] + x[2] + x[4]) / 3, x[1], x[5]]))


def test_the_most_alike_join_where_the_budget_allows_no_more():
    x, y = [1.0, 0.0], [1.0, 0.5]
    tokens = prompt_of([x, x, x, y, x, x], [0, 1, 2, 0, 1, 2])  # cosines 0.89, 1 and 1 with the frame before
    states, kept = FrameFusionPruner(retention_ratio=0.85, num_layers=10)(tokens)  # 5 of 6 in each layer that follows
    assert kept.tolist() == [0, 1, 2, 3, 5]  # of the two most alike the earlier one
    assert torch.equal(states, tokens.hidden[kept])


def test_tokens_of_different_positions_never_join():
    tokens = prompt_of([[1.0, 0.0]] * 6, [0, 1, 2, 3, 4, 5])  # such as two videos of three positions and one frame each
    assert (similarity_to_predecessor(tokens.hidden[:6], tokens.cells) == -math.inf).all()
    assert FrameFusionPruner(retention_ratio=0.5)(tokens)[1].tolist() == [0, 1, 2, 3, 4, 5]  # the next layer cuts
    later = prompt_of([[1.0, 0.0]] * 6, [0, 1, 2, 3, 4, 5], layer=2)
    assert FrameFusionPruner(retention_ratio=0.5)(later)[1].tolist() == [0, 1, 2]  # (14 - 2) / 26 of 6, equal attention


def test_after_the_cut_everything_passes():
    tokens = prompt_of([[1.0, 0.0]] * 4, [0] * 4, layer=5, counts=(20, 4, 4, 4, 4))
    states, kept = FrameFusionPruner(retention_ratio=0.2)(tokens)
    assert kept.tolist() == [0, 1, 2, 3]
    assert torch.equal(states, tokens.hidden[:4])


def test_for_mean_and_refusals():
    pruner = FrameFusionPruner().for_mean(0.2, 36)
    assert (pruner.retention_ratio, pruner.layers) == (0.2, tuple(range(1, 36)))
    with pytest.raises(BudgetError, match="out of reach"):
        FrameFusionPruner().for_mean(0.03, 28)
    with pytest.raises(BudgetError, match="out of reach"):
        FrameFusionPruner(layer=9)
    with pytest.raises(OptionError, match="merge_threshold"):
        FrameFusionPruner(merge_threshold=1.5)
    with pytest.raises(OptionError, match="least_merged"):
        FrameFusionPruner(least_merged=-0.1)
