"""VisionZip: keep the salient tokens of every frame, and a few into which the others are merged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.methods.base import Limits, Presets, Pruner
from tango.methods.registry import register
from tango.ops.assembly import assemble
from tango.ops.budget import ROUNDING_ERROR, apportion, ceil_count, exact_count
from tango.ops.checks import check_finite
from tango.ops.merging import add_to_anchors, merge_into_anchors
from tango.ops.selection import top_k
from tango.ops.similarity import unit_cosines, unit_rows


class _Choice(NamedTuple):
    """What happens to the tokens of B frames; tokens are positions in their frame, in [0, N)."""

    dominant: Int[Tensor, "B dominant"]  # kept as they are
    rest: Int[Tensor, "B rest"]  # all others, in order
    anchors: Int[Tensor, "anchors"]  # which columns of `rest` are anchors, the same in every frame
    cluster: Int[Tensor, "B rest"]  # for each of the rest its anchor, as an index into `anchors`


@register("visionzip")
@dataclass(frozen=True, kw_only=True)
class VisionZipPruner(Pruner):
    """Keep each frame's most salient tokens, and merge the others into evenly spaced ones by their attention keys.

    Works with any saliency; the default is that of the paper, the tower's own attention.

    Source: section 3 of arXiv:2412.04467; for towers without a class token, frame by frame as in HoliTom's code.
    `rounding="down"` counts as VisionZip's code does: of 196 tokens at ratio 0.1, 9 dominant and 9 contextual ones, not
    10 and 10.
    Deviation: kept tokens are in the order of the video, not a frame's dominant ones first. On LLaVA-Video, HoliTom's
    code keeps the newlines of all rows, which `keep_newlines` does here, and mixes up the features of dominant tokens,
    which nothing does here. Cosines are rounded to multiples of 2**-18, so that ties go to the earlier anchor.
    Contextual tokens take at most half of a frame's budget.
    Example:
        >>> pruned = tango.VisionZipPruner(retention_ratio=0.25)(tokens)
        >>> (pruned.indices // 36).bincount()  # tokens kept of each frame
        tensor([9, 9, 9, 9, 9, 9, 9, 9])
    """

    context_ratio: float = 0.05  # contextual tokens (section 5.1 of arXiv:2604.09547, which leaves open of what)
    context_base: Literal["tokens", "budget"] = "tokens"  # share of a frame's tokens (VisionZip's Qwen port) or budget
    rounding: Literal["up", "down"] = "up"  # ceil(r N), of them round(c N) merged; floor((r - c) N) + floor(c N)
    context_merge: Literal["sum", "mean"] = "sum"  # release: anchor + mean of the others; mean: of all, anchor included

    needs: ClassVar[Signal] = Signal.SALIENCY | Signal.KEYS
    default_saliency: ClassVar[str] = "attn"
    presets: ClassVar[Presets] = {"llava-video": {"keep_newlines": True}}  # all 13 of a frame (release)
    limits: ClassVar[Limits] = {"context_ratio": (0, 1)}
    budget_rule: ClassVar[str] = "ceil(r N) per frame; up to two fewer with `rounding` down"
    paper: ClassVar[Paper] = Paper(
        title="VisionZip: Longer is Better but Not Necessary in Vision Language Models",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2412.04467",
        licence="Apache-2.0",
    )

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x, saliency, keys = tokens.features, tokens.saliency, tokens.keys
        assert saliency is not None  # the caller checked `needs`
        assert keys is not None
        T, N, _ = x.shape
        budgets = [self._budget(N)] * T
        if self.exact_budget:
            budgets = apportion(exact_count(T * N, self.retention_ratio), [N] * T)
        with torch.no_grad():
            total = x.sum(dtype=torch.float32) + saliency.sum() + keys.sum(dtype=torch.float32)
            check_finite(total, "features, saliency or keys")
        assignment = torch.full((T, N), -1, device=x.device)
        indices, features = [], []
        for budget, frames in groupby(range(T), budgets.__getitem__):
            numbers = list(frames)
            block = slice(numbers[0], numbers[-1] + 1)
            num_context = self._num_context(budget, N)
            with torch.no_grad():
                choice = _choose(saliency[block], keys[block], budget - num_context, num_context)
            kept, rows = self._reduce(x[block], choice, assignment[block], first=block.start * N)
            indices.append(kept)
            features.append(rows)
        return assemble(indices, features, assignment.flatten())

    def _budget(self, N: int) -> int:
        """The number of tokens that a frame keeps, unless the budget is exact."""
        if self.rounding == "up":
            return ceil_count(N, self.retention_ratio)
        context = min(self._context_share, self.retention_ratio / 2)
        return max(1, _floor(context * N) + _floor((self.retention_ratio - context) * N))

    @property
    def _context_share(self) -> float:
        """Contextual tokens as a share of a frame's."""
        return self.context_ratio * (1 if self.context_base == "tokens" else self.retention_ratio)

    def _num_context(self, budget: int, N: int) -> int:
        """The number of contextual tokens of a frame."""
        if self.rounding == "down":
            return min(_floor(self._context_share * N), budget // 2)
        return min(round(self.context_ratio * (N if self.context_base == "tokens" else budget)), budget // 2)

    def _reduce(
        self, x: Float[Tensor, "B N D"], choice: _Choice, assignment: Int[Tensor, "B N"], *, first: int
    ) -> tuple[Int[Tensor, "K"], Float[Tensor, "K D"]]:
        """Return flat indices and features of what B frames keep; write what stands for each token into `assignment`.

        Args:
            first: flat index of the first token of these frames.
        """
        B, N, _ = x.shape
        start = torch.arange(B, device=x.device)[:, None] * N
        dominant, rest = choice.dominant + start, choice.rest + start  # flat from here on, counted from `first`
        anchors = rest.index_select(1, choice.anchors)
        num_context, none = anchors.shape[1], anchors.numel()
        assignment.scatter_(1, choice.dominant, dominant + first)
        source = x.reshape(B * N, -1)
        kept, rows = dominant.flatten(), source.index_select(0, dominant.flatten())
        if not num_context:
            return kept + first, rows
        assignment.scatter_(1, choice.rest, anchors.gather(1, choice.cluster) + first)
        numbered = choice.cluster + torch.arange(B, device=x.device)[:, None] * num_context
        if self.context_merge == "sum":
            numbered = numbered.index_fill(1, choice.anchors, none)
        cluster = torch.full((B * N,), none, device=x.device).index_copy(0, rest.flatten(), numbered.flatten())
        if self.context_merge == "sum":
            merged = add_to_anchors(source, cluster, anchors.flatten())
        else:
            merged = merge_into_anchors(source, cluster, anchors.flatten(), weight=0.0)
        return torch.cat([kept, anchors.flatten()]) + first, torch.cat([rows, merged])


def _floor(count: float) -> int:
    """Round down; just below a whole number counts as that number."""
    return math.floor(count + ROUNDING_ERROR)


def _choose(
    saliency: Float[Tensor, "B N"], keys: Float[Tensor, "B N d"], num_dominant: int, num_context: int
) -> _Choice:
    """Pick the most salient tokens, space the anchors evenly over the others, and find the nearest anchor of each."""
    B, N = saliency.shape
    dominant = top_k(saliency, num_dominant)
    taken = torch.zeros(B, N, dtype=torch.uint8, device=saliency.device).scatter_(1, dominant, 1)
    rest = taken.sort(dim=1, stable=True).indices[:, : N - num_dominant]  # in order
    stride = max(1, rest.shape[1] // max(1, num_context))
    anchors = torch.arange(num_context, device=saliency.device) * stride
    if not num_context:
        return _Choice(dominant, rest, anchors, torch.zeros_like(rest))
    rows = unit_rows(keys.gather(1, rest[:, :, None].expand(-1, -1, keys.shape[2])))
    cluster = unit_cosines(rows, rows.index_select(1, anchors)).argmax(dim=-1)
    own = torch.arange(num_context, device=saliency.device)
    return _Choice(dominant, rest, anchors, cluster.index_copy(1, anchors, own.expand(B, -1)))
