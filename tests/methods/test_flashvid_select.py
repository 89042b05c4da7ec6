"""tango.methods.flashvid_select: what the last token attends to, with a count that is rounded up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tango.methods import FlashVidSelectPruner
from tests.layer_tokens import random_prompt, with_attention

GOLDEN = Path(__file__).parents[1] / "data" / "golden-flashvid"


def test_rows_that_stay_are_those_of_the_release() -> None:
    with np.load(GOLDEN / "fv11_inner.npz") as file:
        case = dict(file)
    start, count = int(case["visual_start"]), int(case["visual_length"])
    hidden, attention = (torch.from_numpy(case[name])[0] for name in ("hidden", "attention_last_row"))
    heads, S = attention.shape
    tokens = dataclasses.replace(
        random_prompt(), hidden=hidden, visual=torch.arange(start, start + count), text=torch.tensor([S - 1]),
        queries=torch.ones(1, heads, 1), keys=attention.T.clamp_min(1e-30).log()[:, :, None], scale=1.0,
        norm_weight=torch.ones(hidden.shape[1]), frames=torch.zeros(count, dtype=torch.long),
        cells=torch.arange(count), counts=(count, count),
    )  # fmt: skip
    states, kept = FlashVidSelectPruner(retention_ratio=float(case["llm_retention_ratio"]))(tokens)
    stay = [*range(start), *(start + kept).tolist(), *range(start + count, S)]
    assert stay == case["official_indices"].tolist()
    assert torch.equal(states, hidden[start + kept])
    assert torch.equal(hidden[stay], torch.from_numpy(case["official_hidden"])[0])


def test_by_hand() -> None:
    """Of five tokens 0.3 * 5 = 1.5 stay, so two: of the two that are equal, the earlier one."""
    x = torch.arange(10.0).view(5, 2)
    states, kept = FlashVidSelectPruner()(with_attention(x, torch.tensor([0.1, 0.3, 0.05, 0.3, 0.25])))
    assert kept.tolist() == [1, 3]
    assert torch.equal(states, x[[1, 3]])
    assert FlashVidSelectPruner()(with_attention(x, torch.ones(5)))[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("M", "ratio", "count"),
    [
        (800, 0.3, 240),
        (832, 0.3, 250),
        (1184, 0.3, 356),
        (1568, 0.3, 471),
        (1, 0.3, 1),
        (70, 0.1, 7),
        (3, 0.1 + 0.2, 1),
    ],
)
def test_counts(M: int, ratio: float, count: int) -> None:
    """A product just above a whole number is that number: 100 * 0.07 is 7.000000000000001."""
    _, kept = FlashVidSelectPruner(retention_ratio=ratio)(with_attention(torch.zeros(M, 1), torch.rand(M)))
    assert len(kept) == count


def test_mean_over_layers() -> None:
    assert FlashVidSelectPruner().mean_share(28) == pytest.approx(0.8)
    assert FlashVidSelectPruner(layer=28, retention_ratio=0.1).mean_share(36) == pytest.approx(0.8)
