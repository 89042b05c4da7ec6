"""FrameFusion: merge what stays the same from frame to frame, layer by layer, then cut by importance once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from tango.annotations import Bool, Float, Int
from tango.containers import LayerTokens, Paper
from tango.methods.base import LayerPruner, Limits
from tango.methods.registry import register
from tango.ops.attention import attention_of_last_token
from tango.ops.flops import solve_layer_ratio
from tango.ops.merging import cluster_means
from tango.ops.selection import top_k
from tango.ops.similarity import unit_cosines, unit_rows


@register("framefusion")
@dataclass(frozen=True, kw_only=True)
class FrameFusionPruner(LayerPruner):
    """Average visual tokens into alike ones of the frame before, layer by layer; then keep what is attended to most.

    Tokens of one place in the frame whose states have a cosine of `merge_threshold` or more with their predecessor's
    there join it: each run becomes its mean, in float32, at its first token. Merging goes on from layer to layer until
    a layer merges less than `least_merged` of its tokens; the next layer then keeps those that the prompt's last token
    attends to most, as many as may run through the rest. If merging alone would leave no more than that, only the most
    alike tokens join, and nothing is cut. Ties go to the earlier token; newlines take part.

    `retention_ratio` is the fraction of visual tokens that enter a layer, averaged over all layers. What merges depends
    on the states: the host waits once at every merging layer.

    Source: arXiv:2501.01986 and its release.
    Deviation: works at the inputs of layers, from layer 1 on; the release works between attention and MLP, and before
    layer 0. A cut comes at once where merging on would leave later layers less than half of what they may have now, or
    where no layer follows; the release then misses the budget. Merging that meets the budget but for rounding ends.
    """

    layer: int = 1  # where merging begins
    retention_ratio: float = 0.3  # averaged over the layers (release: cost)
    num_layers: int = 28  # of the LLM; 28 is the release's constant
    merge_threshold: float = 0.6  # cosine (release)
    least_merged: float = 0.1  # of the tokens of a layer, or merging has done its work (release)

    limits: ClassVar[Limits] = {"merge_threshold": (-1, 1), "least_merged": (0, 1)}
    budget_rule: ClassVar[str] = "as many as make the mean over all layers r M; how soon depends on the video"
    paper: ClassVar[Paper] = Paper(
        title="FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language "
        "Models",
        venue="ICCV 2025",
        url="https://arxiv.org/abs/2501.01986",
        licence="MIT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        solve_layer_ratio(self.retention_ratio, num_layers=self.num_layers, layer=self.layer)  # raises

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers from `layer` on; those after the cut let everything pass."""
        return tuple(range(self.layer, self.num_layers))

    def for_mean(self, mean: float, num_layers: int) -> FrameFusionPruner:
        """The same method with this mean and for this LLM.

        Raises:
            BudgetError: the layers before `layer`, which see all tokens, alone are more than that.
        """
        return dataclasses.replace(self, retention_ratio=mean, num_layers=num_layers)

    def mean_share(self, num_layers: int) -> float:
        del num_layers
        return self.retention_ratio

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        hidden = tokens.hidden[tokens.visual]
        M, allowed, phase = len(hidden), self._allowed(tokens.counts), self._phase(tokens.counts)
        most_merged = M - max(1, math.ceil(allowed))
        if phase == "done" or most_merged <= 0:
            return hidden, torch.arange(M, device=hidden.device)
        if phase == "merge":
            likeness = likeness_to_predecessor(hidden, tokens.cells)
            joins = likeness >= self.merge_threshold
            num_joins = min(int(joins.sum()), most_merged)
            if num_joins == most_merged:
                joins = torch.zeros_like(joins).index_fill(0, top_k(likeness[None], num_joins)[0], True)
            if num_joins == most_merged or 2 * self._allowed((*tokens.counts, M - num_joins)) >= allowed:
                return merge_runs(hidden, tokens.cells, joins, M - num_joins)
        kept = top_k(attention_of_last_token(tokens)[None], max(1, round(allowed)))[0].sort().values
        return hidden.index_select(0, kept), kept

    def _allowed(self, counts: tuple[int, ...]) -> float:
        """How many tokens may run through each of the remaining layers after these; below 0: too many have already."""
        if len(counts) == self.num_layers:
            return 0
        left = self.retention_ratio * self.num_layers * counts[0] - sum(counts)
        return left / (self.num_layers - len(counts))

    def _phase(self, counts: tuple[int, ...]) -> Literal["merge", "cut", "done"]:
        """What is due, from the tokens that ran through the layers before: merging and cutting leave their marks."""
        for layer in range(self.layer, len(counts)):
            if counts[layer] <= max(1, math.ceil(self._allowed(counts[:layer]))):
                return "done"
            if 1 - counts[layer] / counts[layer - 1] < self.least_merged:
                return "cut" if layer == len(counts) - 1 else "done"
        return "merge"


def likeness_to_predecessor(
    hidden: Float[torch.Tensor, "M D"], cells: Int[torch.Tensor, "M"]
) -> Float[torch.Tensor, "M"]:
    """Cosine of every token with the one before it in the same place; -inf if there is none."""
    order = cells.argsort(stable=True)  # place by place, in time order
    unit = unit_rows(hidden.detach())[order]
    cosines = unit_cosines(unit[1:, None], unit[:-1, None])[:, 0, 0]
    cosines = F.pad(cosines.masked_fill(cells[order].diff() != 0, -torch.inf), (1, 0), value=-torch.inf)
    return torch.empty_like(cosines).index_copy(0, order, cosines)


def merge_runs(
    hidden: Float[torch.Tensor, "M D"], cells: Int[torch.Tensor, "M"], joins: Bool[torch.Tensor, "M"], num_kept: int
) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
    """Average every run of tokens that join their predecessor in the same place into the token that begins it.

    Args:
        num_kept: tokens that do not join; the first ones of their places never do.
    """
    order = cells.argsort(stable=True)
    place = torch.arange(len(order), device=order.device)
    begin = order[place.masked_fill(joins[order], 0).cummax(0).values]  # of each run, in order of places
    kept = joins.byte().sort(stable=True).indices[:num_kept]
    runs = torch.searchsorted(kept, torch.empty_like(begin).index_copy(0, order, begin))
    return cluster_means(hidden, runs, num_kept), kept
