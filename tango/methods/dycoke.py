"""DyCoke's pre-LLM part: keep every fourth frame whole, and of the others what changed since an earlier frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from tango.annotations import Float
from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.errors import BudgetError, OptionError
from tango.methods.base import Limits, Pruner
from tango.methods.registry import register
from tango.ops.budget import apportion, exact_count
from tango.ops.checks import check_finite
from tango.ops.device import chunks, to_device
from tango.ops.similarity import paired_cosines, unit_rows


@register("dycoke")
@dataclass(frozen=True, kw_only=True)
class DyCokePruner(Pruner):
    """Keep every fourth frame whole, and of the others the tokens that changed most since an earlier frame.

    In a group of four frames, frames 1 and 2 are compared with frame 0, and frame 3 with frame 2, position by position.

    Source: token merging of section 3.2 of arXiv:2411.15024 and its release, which drops the redundant tokens.
    Deviation: the share to drop is solved for `retention_ratio`. The first frames of groups of four are a quarter of
    the video; for a smaller ratio the size of the groups doubles (frame 4 is then compared with frame 0, frame 6 with
    frame 4, and so on), and a budget of less than one frame is spread evenly over the first frame. Also unlike the
    release, an odd last frame and the last group get no special treatment, and kept tokens stay in order. The part that
    selects from the KV cache during decoding is left out.
    Example:
        >>> pruned = tango.DyCokePruner(retention_ratio=0.5)(tokens)
        >>> (pruned.indices // 36).bincount()  # tokens kept of each frame
        tensor([36, 12, 12, 12, 36, 12, 12, 12])
    """

    group_frames: int | None = None  # frames per whole frame (4 in the release); None: 4, doubled while r asks for less
    share_dropped: float | None = None  # of every frame that is not whole (k, 0.7 in the release); None: solved for r
    release_tail: bool = False  # groups of 4, T a multiple of 4: frame T - 2 is whole, too (off by one in the release)

    limits: ClassVar[Limits] = {"group_frames": (2, math.inf), "share_dropped": (0, 1)}
    budget_rule: ClassVar[str] = "round(r T N), always exact; with `share_dropped` whatever that leaves"
    paper: ClassVar[Paper] = Paper(
        title="DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2411.15024",
        licence="Apache-2.0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact_budget and self.share_dropped is not None:
            raise OptionError(
                "share_dropped sets the number of tokens, and so does exact_budget: leave one of them out"
            )

    @property
    def about_time(self) -> str:
        return "compares frames, and looks at nothing within one"

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        x, device = tokens.features.flatten(0, 1), tokens.features.device
        references, counts = self._plan(T, N)
        thinned = [t for t, reference in enumerate(references) if reference != t and counts[t]]
        kept = [t * N + i for t, r in enumerate(references) if r == t for i in _spread(counts[t], N)]
        with torch.no_grad():
            check_finite(x.sum(dtype=torch.float32), "features")
            indices = to_device(kept, device)
            if thinned:
                similarity = _similarity(tokens.features, thinned, [references[t] for t in thinned])
                order = similarity.sort(dim=1, stable=True).indices + to_device(thinned, device)[:, None] * N
                first = np.concatenate([row * N + np.arange(counts[t]) for row, t in enumerate(thinned)])
                indices = torch.cat([indices, order.flatten().index_select(0, to_device(first, device))]).sort().values
        return PrunedTokens(features=x.index_select(0, indices), indices=indices)

    def _plan(self, T: int, N: int) -> tuple[list[int], list[int]]:
        """For each frame, the frame that it is compared with (a whole frame: itself) and the number of tokens to keep.

        Host arithmetic only.

        Raises:
            BudgetError: in groups of `group_frames`, whole frames alone exceed the budget.
        """
        total, group = exact_count(T * N, self.retention_ratio), self.group_frames or 4
        references = self._references(T, group)
        can_grow = self.group_frames is None and self.share_dropped is None
        while can_grow and group < T and _num_whole(references) * N > total:
            group *= 2
            references = self._references(T, group)
        num_whole = _num_whole(references)
        if self.share_dropped is not None:
            counts = [int((1 - self.share_dropped) * N)] * (T - num_whole)
        elif num_whole * N <= total:
            counts = apportion(total - num_whole * N, [N] * (T - num_whole))
        elif can_grow:
            return references, [total] + [0] * (T - 1)
        else:
            raise BudgetError(
                f"groups of {group} frames keep at least {num_whole} of these {T} frames, so retention_ratio must be "
                f"at least {num_whole / T:.4g}, got {self.retention_ratio!r}; group_frames=None lets groups grow"
            )
        shares = iter(counts)
        return references, [N if t == reference else next(shares) for t, reference in enumerate(references)]

    def _references(self, T: int, group: int) -> list[int]:
        """For each frame, the frame that it is compared with; a whole frame: itself."""
        # Clearing the lowest set bit of a frame's number in its group: 1, 2, 4 -> 0; 3 -> 2; 5, 6 -> 4; 7 -> 6; ...
        references = [t - ((offset := t % group) & -offset) for t in range(T)]
        if self.release_tail and group == 4 and T % 4 == 0:
            references[T - 2] = T - 2
        return references


def _num_whole(references: list[int]) -> int:
    return sum(t == reference for t, reference in enumerate(references))


def _spread(count: int, N: int) -> list[int]:
    """`count` of N positions at equal distances."""
    return [(2 * i + 1) * N // (2 * count) for i in range(count)]


def _similarity(x: Float[Tensor, "T N D"], frames: list[int], references: list[int]) -> Float[Tensor, "pairs N"]:
    """Cosine of every token of these frames with the token at its position in its reference frame."""
    rows = []
    for chunk in chunks(len(frames), x[0].numel() * 8, x.device):
        a, b = (unit_rows(x.index_select(0, to_device(pair[chunk], x.device))) for pair in (frames, references))
        rows.append(paired_cosines(a, b))
    return torch.cat(rows)
