"""tango.ops.reduction: select and merge within one group of tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tango.ops.groups import Group
from tango.ops.reduction import reduce_group

OPTIONS = {"alpha": 1.0, "num_neighbors": 2, "merge_weight": 0.0, "by_density": False}


def reduced(group: Group, x: torch.Tensor, saliency: torch.Tensor, **options):
    places = torch.from_numpy(group.places)
    metric = F.normalize(x[:, places], dim=-1)
    return reduce_group(group, x, places, metric, saliency, **{**OPTIONS, **options})


def test_the_most_salient_stays_and_the_others_are_averaged_by_likeness() -> None:
    # Frame 7; places 1..5 of 6. Place 3 is salient; 1 and 2 point one way, 4 and 5 the other.
    x = torch.tensor([[[9.0, 9], [1, 0], [3, 0.1], [5, 5], [0, 2], [0.1, 4]]])
    group = Group([7], np.arange(1, 6), 1, 2)
    kept = reduced(group, x, torch.tensor([[0.1, 0.1, 0.9, 0.1, 0.1]]))
    order = kept.indices.argsort()
    indices, features = kept.indices[order] - 7 * 6, kept.features[order]
    assert indices.tolist()[1] == 3
    assert indices.tolist()[0] in (1, 2)
    assert indices.tolist()[2] in (4, 5)
    torch.testing.assert_close(features, torch.tensor([[2.0, 0.05], [5, 5], [0.05, 3]]))
    stands_for = (kept.absorbed_by - 42).tolist()[0]
    assert stands_for == [indices[0], indices[0], 3, indices[2], indices[2]]


def test_joint_groups_merge_across_frames_and_separate_ones_do_not() -> None:
    x = torch.tensor([[[1.0, 0], [0, 1]], [[1, 0], [0, 1]]])
    saliency = torch.zeros(2, 2)
    joint = reduced(Group([0, 1], np.arange(2), 0, 2, joint=True), x, saliency)
    assert sorted((joint.indices % 2).tolist()) == [0, 1]
    assert torch.equal(joint.absorbed_by[0], joint.absorbed_by[1])
    apart = reduced(Group([0, 1], np.arange(2), 0, 1), x, saliency)
    assert sorted((apart.indices // 2).tolist()) == [0, 1]
    assert (apart.absorbed_by // 2).tolist() == [[0, 0], [1, 1]]


def test_by_density_only_changes_where_rows_land() -> None:
    random = torch.Generator().manual_seed(0)
    x, saliency = torch.randn(1, 40, 8, generator=random), torch.rand(1, 40, generator=random)
    group = Group([0], np.arange(40), 4, 8)
    aligned, released = (reduced(group, x, saliency, by_density=flag) for flag in (False, True))
    assert sorted(aligned.indices.tolist()) == sorted(released.indices.tolist())
    assert aligned.indices.tolist() != released.indices.tolist()
    assert torch.equal(aligned.features, released.features)
