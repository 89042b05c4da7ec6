"""The layer pruner `prunevid-select` by itself."""

from __future__ import annotations

import math

import pytest
import torch

from tango.errors import BudgetError
from tango.methods.prunevid_select import PruneVidSelectPruner, best_of_each_frame
from tests.layer_tokens import random_prompt, with_attention


def kept_by_the_oracle(tokens, share: float) -> list[int]:
    """Largest attention over heads and text tokens, one by one; then frame after frame."""
    heads, groups = tokens.queries.shape[1], tokens.keys.shape[1]
    most = [0.0] * len(tokens.hidden)
    for query, row in zip(tokens.queries, tokens.text.tolist(), strict=True):
        for head in range(heads):
            keys = tokens.keys[:, head // (heads // groups)]
            scores = [math.exp(float(query[head] @ keys[i]) * tokens.scale) for i in range(row + 1)]
            for i, score in enumerate(scores):
                most[i] = max(most[i], score / sum(scores))
    kept = []
    for frame in sorted(set(tokens.frames.tolist())):
        members = [m for m, f in enumerate(tokens.frames.tolist()) if f == frame]
        members.sort(key=lambda m: (-most[int(tokens.visual[m])], m))
        kept += members[: max(1, int(len(members) * share))]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.05, 0.4, 0.77])
def test_equals_the_oracle(seed, share):
    tokens = random_prompt(seed=seed, frames=5, cells=11)
    states, kept = PruneVidSelectPruner(layer=2, retention_ratio=share)(tokens)
    assert kept.tolist() == kept_by_the_oracle(tokens, share)
    assert torch.equal(states, tokens.hidden[tokens.visual[kept]])


@pytest.mark.parametrize("size", [1, 3])
def test_text_in_blocks_changes_nothing(cut_into_blocks, size):
    tokens = random_prompt(seed=7, text=8)
    expected = kept_by_the_oracle(tokens, 0.4)
    cut_into_blocks(size)
    assert PruneVidSelectPruner()(tokens)[1].tolist() == expected


def test_frames_of_unequal_size():
    frames = torch.tensor([0, 0, 0, 0, 0, 2, 3, 3, 3])
    kept = best_of_each_frame(torch.tensor([0.1, 0.5, 0.2, 0.5, 0.4, 0.0, 0.3, 0.3, 0.3]), frames, 0.4)
    assert kept.nonzero()[:, 0].tolist() == [1, 3, 5, 6]  # 2 of 5, 1 of 1, and of 3 equal ones the first


def test_one_word_and_one_head_are_enough():
    x = torch.eye(4)
    keys = torch.zeros(6, 1, 2)
    keys[1, 0], keys[2, 0] = torch.tensor([6.0, 0.0]), torch.tensor([0.0, 4.0])
    queries = torch.zeros(2, 2, 2)
    queries[0, 1] = torch.tensor([0.0, 1.0])  # the first word looks at token 2 with one head
    queries[1, :] = torch.tensor([0.5, 0.0])  # the second at token 1 with both
    tokens = with_attention(
        x, torch.ones(4), hidden=torch.cat([x, torch.ones(2, 4)]), text=torch.tensor([4, 5]), queries=queries, keys=keys
    )
    assert PruneVidSelectPruner(retention_ratio=0.25)(tokens)[1].tolist() == [2]
    assert PruneVidSelectPruner(retention_ratio=0.5)(tokens)[1].tolist() == [1, 2]


def test_a_mean_below_its_layers_share_is_refused():
    with pytest.raises(BudgetError, match="prune at layer 2 or before"):
        PruneVidSelectPruner().for_mean(0.1, 28)
    assert PruneVidSelectPruner(layer=2).for_mean(0.1, 28).retention_ratio == pytest.approx(0.0307692, abs=1e-6)
