"""tango.methods.dart: pivots by the size of their keys, and what resembles none of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tango.errors import OptionError
from tango.methods.dart import DartPruner
from tests.layer_tokens import random_prompt, with_attention


def by_loops(tokens, ratio: float, num_visual: int = 4, num_text: int = 4, order: str = "set") -> list[int]:
    """Section by section: pivots, then each pivot's least similar tokens, from what is left."""
    norms = [float(sum(abs(v) for v in row.flatten().tolist())) for row in tokens.keys]
    visual, text = tokens.visual.tolist(), tokens.text.tolist()
    pivots = sorted(range(len(visual)), key=lambda i: -norms[visual[i]])[:num_visual]
    of_text = sorted(text, key=lambda row: -norms[row])[:num_text]
    q = int(len(visual) * ratio) // (len(pivots) + len(of_text))
    if len(pivots) + q * (len(pivots) + len(of_text)) >= len(visual):
        return list(range(len(visual)))
    x = tokens.hidden.float()
    x = x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt() * tokens.norm_weight  # the final norm
    kept, candidates = list(pivots), [i for i in range(len(visual)) if i not in pivots]
    in_order = [*(visual[i] for i in pivots), *of_text]
    for pivot in {*in_order} if order == "set" else in_order:
        similarity = {i: float(torch.cosine_similarity(x[visual[i]], x[pivot], dim=0)) for i in candidates}
        picked = sorted(candidates, key=lambda i: similarity[i])[:q]
        kept += picked
        candidates = [i for i in candidates if i not in picked]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.35, 0.6, 0.9])
@pytest.mark.parametrize("text", [1, 3, 9])
@pytest.mark.parametrize("order", ["set", "norm"])
def test_equals_loops(seed, ratio, text, order):
    tokens = random_prompt(seed=seed, text=text)
    states, kept = DartPruner(retention_ratio=ratio, pivot_order=order)(tokens)
    assert kept.tolist() == by_loops(tokens, ratio, order=order)
    assert torch.equal(states, tokens.hidden[tokens.visual[kept]])


def test_other_numbers_of_pivots():
    tokens = random_prompt()
    for num_visual, num_text in ((1, 0), (2, 5), (60, 1)):
        options = {"num_visual_pivots": num_visual, "num_text_pivots": num_text}
        _, kept = DartPruner(retention_ratio=0.4, **options)(tokens)
        assert kept.tolist() == by_loops(tokens, 0.4, num_visual, num_text)


def test_by_hand():
    angles = torch.tensor([0.0, 0.1, 1.0, 2.0, 3.0, 1.5])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    keys = torch.tensor([9.0, 1, 1, 1, 1, 1, 0])[:, None, None]
    pruner = DartPruner(retention_ratio=0.4, num_visual_pivots=1, num_text_pivots=1)
    tokens = dataclasses.replace(with_attention(x, torch.ones(6)), keys=keys)
    # Pivot 0 keeps what points furthest away from it: 4. The text pivot (1, 1) then keeps 3, which it resembles least.
    assert pruner(tokens)[1].tolist() == [0, 3, 4]


def test_equal_tokens_keep_the_earlier():
    tokens = dataclasses.replace(with_attention(torch.ones(20, 3), torch.ones(20)), keys=torch.ones(21, 1, 1))
    pruner = DartPruner(retention_ratio=0.3, num_visual_pivots=2, num_text_pivots=1)
    assert pruner(tokens)[1].tolist() == list(range(8))


def test_the_norms_weight_counts():
    tokens = random_prompt()
    other = dataclasses.replace(tokens, norm_weight=tokens.norm_weight * torch.arange(1.0, 17))
    kept, changed = (DartPruner(retention_ratio=0.3)(t)[1].tolist() for t in (tokens, other))
    assert kept != changed == by_loops(other, 0.3)


@pytest.mark.parametrize(("mean", "count"), [(0.1, 196), (0.15, 532), (0.2, 868)])
def test_counts_for_32_frames_of_196_tokens(mean, count):
    tokens = random_prompt(frames=32, cells=196, text=20, dim=4)
    assert len(DartPruner().for_mean(mean, 28)(tokens)[1]) == count


def test_numbers_of_pivots_are_checked():
    with pytest.raises(OptionError, match=r"num_visual_pivots must lie in \[1, inf\], got 0"):
        DartPruner(num_visual_pivots=0)
    with pytest.raises(OptionError, match=r"num_text_pivots must lie in \[0, inf\], got -1"):
        DartPruner(num_text_pivots=-1)
