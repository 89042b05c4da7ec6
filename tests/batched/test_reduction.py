"""tango.batched.reduction: select and merge within groups of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tango.batched.engine import _numbered_together
from tango.batched.layout import Group, arrange
from tango.batched.merging import merge_over_frames
from tango.batched.reduction import clusters_of_tokens, reduce_rows
from tango.ops.clustering import TICK_LENGTH

OPTIONS = {"alpha": 1.0, "num_neighbors": 2, "by_density": False}


def reduced(groups: list[Group], x: Tensor, saliency: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Kept tokens in order, their features, and which of them stands for each token (their number: none)."""
    T, N, _ = x.shape
    layout = arrange(groups, T, N, max_rows=options.pop("max_rows", 1000))
    token, span, row = (torch.from_numpy(array) for array in (layout.tokens, layout.spans, layout.rows))
    unit = F.normalize(x.flatten(0, 1), dim=-1) / TICK_LENGTH
    score = saliency.flatten()[token]
    kept = [
        reduce_rows(
            batch, score[batch.rows], lambda rows, own=token[batch.rows]: unit[own[rows]], **{**OPTIONS, **options}
        )
        for batch in layout.batches
    ]
    rows, anchors, assignment = _numbered_together(kept)
    indices, order = token[rows].sort()
    cluster = clusters_of_tokens(rows[order], assignment)[row]
    anchors = anchors[order]
    features = merge_over_frames(
        x.flatten(0, 1), cluster, token[anchors], span[anchors], weight=0.0, stride=N, num_averaged=layout.num_averaged
    )
    return indices, features, cluster


def test_the_most_salient_stays_and_the_others_are_averaged_by_likeness() -> None:
    # Frame 1; positions 1..5 of 6. Position 3 is salient; 1 and 2 point one way, 4 and 5 the other.
    x = torch.zeros(2, 6, 2)
    x[1] = torch.tensor([[9.0, 9], [1, 0], [3, 0.1], [5, 5], [0, 2], [0.1, 4]])
    saliency = torch.tensor([[0.0] * 6, [0.9, 0.1, 0.1, 0.9, 0.1, 0.1]])
    indices, features, cluster = reduced([Group([1], np.arange(1, 6), 1, 2)], x, saliency)
    assert indices.tolist()[1] == 6 + 3
    assert indices.tolist()[0] in (7, 8)
    assert indices.tolist()[2] in (10, 11)
    torch.testing.assert_close(features, torch.tensor([[2.0, 0.05], [5, 5], [0.05, 3]]))
    assert cluster.tolist() == [3] * 7 + [0, 0, 1, 2, 2]


def test_joint_groups_merge_across_frames_and_separate_ones_do_not() -> None:
    x = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [0, 1]]])
    saliency = torch.zeros(2, 2)
    indices, _, cluster = reduced([Group([0, 1], np.arange(2), 0, 2, joint=True)], x, saliency)
    assert sorted((indices % 2).tolist()) == [0, 1]
    assert cluster.tolist() == [0, 1, 0, 1]
    indices, _, cluster = reduced([Group([0, 1], np.arange(2), 0, 1)], x, saliency)
    assert (indices // 2).tolist() == [0, 1]
    assert cluster.tolist() == [0, 0, 1, 1]


def test_averaged_tokens_take_all_their_frames_with_them() -> None:
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    indices, features, cluster = reduced([Group([0], np.array([1]), 0, 1, span=3)], x, torch.zeros(3, 2))
    assert indices.tolist() == [1]
    torch.testing.assert_close(features[0], x[:, 1].mean(0))
    assert cluster.tolist() == [1, 0] * 3


def mixed_groups() -> list[Group]:
    """A segment of 4 frames with 10 static positions; 3 single frames; a segment that keeps everything, one nothing."""
    return [
        Group([0], np.arange(10), 2, 2, span=4),
        Group([0, 1, 2, 3], np.arange(10, 40), 3, 11, joint=True),
        Group([4], np.arange(5), 2, 3),
        Group([4], np.arange(5, 30), 0, 0),
        Group([5, 6, 7], np.arange(40), 4, 8),
    ]


@pytest.mark.parametrize("max_rows", [1, 60, 150])
@pytest.mark.parametrize("by_density", [False, True])
def test_batches_change_nothing(max_rows: int, by_density: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x, saliency = torch.randn(8, 40, 8, generator=random), torch.rand(8, 40, generator=random)
    groups = mixed_groups()
    together = reduced(groups, x, saliency, alpha=1.5, by_density=by_density)
    in_turns = reduced(groups, x, saliency, alpha=1.5, by_density=by_density, max_rows=max_rows)
    for found, expected in zip(in_turns, together, strict=True):
        assert torch.equal(found, expected)
    assert len(together[0]) == 4 + 12 + 11 + 5 + 36


def test_by_density_only_changes_where_rows_land() -> None:
    random = torch.Generator().manual_seed(0)
    x, saliency = torch.randn(1, 40, 8, generator=random), torch.rand(1, 40, generator=random)
    group = Group([0], np.arange(40), 4, 8)
    aligned, released = (reduced([group], x, saliency, by_density=flag) for flag in (False, True))
    assert aligned[0].tolist() == released[0].tolist()
    assert not torch.equal(aligned[1], released[1])
    assert sorted(aligned[1].tolist()) == sorted(released[1].tolist())
    for token, own in enumerate(aligned[2].tolist()):  # whatever stands for a token has the same content
        assert torch.equal(aligned[1][own], released[1][released[2][token]])
