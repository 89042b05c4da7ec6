"""V-CAST: frames where the video turns get a larger budget; of each, the tokens unlike its mean, and long ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tango.annotations import Float
from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.errors import OptionError
from tango.methods.base import Limits, Pruner
from tango.methods.registry import register
from tango.ops.budget import ROUNDING_ERROR, exact_count
from tango.ops.checks import check_finite
from tango.ops.device import chunks, to_device
from tango.ops.selection import top_k
from tango.ops.similarity import unit_cosines, unit_rows

Leftover = Literal["release", "spread"]
_EPS = 1e-6


@register("v-cast")
@dataclass(frozen=True, kw_only=True)
class VCastPruner(Pruner):
    """Keep more tokens of frames where the video turns; of each, those unlike its mean token and of large norm.

    The curvature of a frame is 1 minus the cosine between the step to it and the step from it, along the frames' mean
    tokens at unit length; it is 1 at both ends, and where nothing moves.

    Source: arXiv:2603.27650 and its release.
    Deviation: computes in float32 whatever the model's dtype; a single frame is pruned like any other (the release
    leaves it whole); cosines are rounded to multiples of 2**-18; a share that misses a whole number by less than 1e-6
    counts as that number.
    Example:
        >>> len(tango.VCastPruner(retention_ratio=0.25)(tokens).indices)
        72
    """

    temperature: float = 0.7  # of the softmax over frames (release)
    min_tokens: int = 1  # of every frame; with exact_budget, 0 where the budget does not reach that far
    leftover: Leftover = "release"  # what rounding leaves: all to one frame (release), or one each, by fraction

    limits: ClassVar[Limits] = {"min_tokens": (0, math.inf)}
    budget_rule: ClassVar[str] = "round(r T N), always exact; min_tokens per frame if that is more"
    paper: ClassVar[Paper] = Paper(
        title="V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video Large Language Models",
        venue="arXiv 2026",
        url="https://arxiv.org/abs/2603.27650",
        licence="MIT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise OptionError(f"temperature must be positive, got {self.temperature!r}")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features
        T, N, _ = x.shape
        with torch.no_grad():
            means = F.normalize(x.mean(1, dtype=torch.float32), dim=-1, eps=_EPS)
            turns = _curvature(means).cpu()  # the only synchronisation
            check_finite(turns, "features")
            counts = self._counts(turns, N)
            order = top_k(_scores(x, means), N) + torch.arange(T, device=x.device)[:, None] * N  # (T, N), flat
            best = np.concatenate([t * N + np.arange(count) for t, count in enumerate(counts)])
            indices = order.flatten().index_select(0, to_device(best, x.device)).sort().values
        return PrunedTokens(features=x.flatten(0, 1).index_select(0, indices), indices=indices)

    def _counts(self, turns: Float[Tensor, "T"], N: int) -> list[int]:
        """The number of tokens to keep of each frame."""
        T = len(turns)
        total, least = exact_count(T * N, self.retention_ratio), min(self.min_tokens, N)
        if not self.exact_budget:
            total = max(total, T * least)
        weights = (turns.double() / self.temperature).softmax(0)
        return allot(weights.tolist(), total, least=least, most=N, leftover=self.leftover)


def allot(weights: Sequence[float], total: int, *, least: int, most: int, leftover: Leftover) -> list[int]:
    """Split `total` tokens over frames in proportion to their weights, which add up to 1.

    Every frame gets `least`, if there are that many, and at most `most`. Shares are rounded down; what is left goes to
    the frames with the largest fractions: as much as fits ("release"), or one each, in rounds ("spread").
    """
    least = least if total >= least * len(weights) else 0
    shares = [(total - least * len(weights)) * weight for weight in weights]
    whole = [math.floor(share + ROUNDING_ERROR) for share in shares]
    counts = [least + min(share, most - least) for share in whole]
    by_fraction = sorted(range(len(weights)), key=lambda t: whole[t] - shares[t])  # ties: the earlier frame
    rest = total - sum(counts)
    while rest:  # more than one round, if frames are full or by "spread"
        for t in by_fraction:
            extra = min(most - counts[t], rest if leftover == "release" else min(rest, 1))
            counts[t] += extra
            rest -= extra
    return counts


def _curvature(means: Float[Tensor, "T D"]) -> Float[Tensor, "T"]:
    """How sharply the path of the frames' mean tokens, at unit length, turns at each frame: 0 to 2."""
    step = F.normalize(means.diff(dim=0), dim=-1, eps=_EPS)  # step t leads from frame t to frame t + 1
    turns = 1 - (step[:-1] * step[1:]).sum(-1)
    return F.pad(turns, (1, 1), value=1.0)[: len(means)] + 0 * means.sum(-1)  # NaN shows at the ends, too


def _scores(x: Float[Tensor, "T N D"], means: Float[Tensor, "T D"]) -> Float[Tensor, "T N"]:
    """How much each token differs from its frame's mean, and how long it is among the frame's tokens."""
    found = []
    for chunk in chunks(len(x), x[0].numel() * 8, x.device):
        rows = x[chunk].float()
        norms = rows.norm(dim=-1)
        low, high = norms.aminmax(dim=1, keepdim=True)
        to_mean = unit_cosines(unit_rows(rows), means[chunk, None])[..., 0]
        found.append(1 - to_mean + (norms - low) / (high - low + _EPS))
    return torch.cat(found)
