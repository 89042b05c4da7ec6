"""Sorting what a method keeps into the order of the video."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tango.annotations import Int
from tango.containers import PrunedTokens


def assemble(indices: Sequence[Tensor], features: Sequence[Tensor], assignment: Int[Tensor, "M"]) -> PrunedTokens:
    """Join groups of kept tokens and sort them by their position in the video.

    Args:
        indices: flat token indices of each group, all different.
        features: their rows, one (K_i, D) tensor per group.
        assignment: flat index of the kept token that stands for each token of the video; -1: none.
    """
    joined, order = torch.cat(list(indices)).sort()
    position = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    rows = features[0].new_empty(len(order), features[0].shape[1])
    for group, positions in zip(features, position.split([len(group) for group in features]), strict=True):
        rows.index_copy_(0, positions, group)  # one group at a time: a joined copy of all would double the memory
    row_of = torch.full_like(assignment, -1)
    row_of[joined] = torch.arange(len(joined), device=joined.device)
    row = torch.where(assignment >= 0, row_of[assignment], -1)
    return PrunedTokens(features=rows, indices=joined, assignment=row)
