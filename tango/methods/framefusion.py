"""FrameFusion: layer by layer, merge tokens that stay the same from frame to frame; then drop by importance, once."""

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
    """Merge visual tokens into similar ones of the frame before, layer by layer; then keep those attended to most.

    A token whose state has a cosine of at least `merge_threshold` with that of its predecessor, the token before it at
    the same position, joins the predecessor: each run of such tokens becomes its mean, in float32, at the first of
    them. Merging goes on from layer to layer until a layer merges less than `least_merged` of its tokens. The next
    layer cuts: it keeps the tokens that the prompt's last token attends to most, as many as the budget allows for all
    remaining layers. If merging alone meets the budget, only as many of the most similar tokens join as it asks for,
    and nothing is cut. Ties go to the earlier token; newlines take part.

    `retention_ratio` is the fraction of visual tokens that enter a layer, averaged over all layers. How many tokens
    merge depends on the states, so the host waits once at every merging layer.

    Source: arXiv:2501.01986 and its release.
    Deviation: works at the inputs of layers, from layer 1 on; the release works between attention and MLP, and before
    layer 0. The cut comes early if merging again would leave later layers less than half of what they may have now, or
    if no layer follows; the release then misses the budget. Merging ends if only rounding is left of the excess.
    Example:
        >>> states, kept = tango.FrameFusionPruner()(prompt)  # nothing merged in layer 1, so layer 2 cuts
        >>> len(prompt.visual), len(kept)
        (54, 13)
    """

    layer: int = 1  # the first that merges
    retention_ratio: float = 0.3  # averaged over the layers (release: cost)
    num_layers: int = 28  # of the LLM; 28 is the release's constant
    merge_threshold: float = 0.6  # cosine (release)
    least_merged: float = 0.1  # of the tokens of a layer; if fewer merge, merging is over (release)

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
        """All layers from `layer` on; those after the cut keep all tokens."""
        return tuple(range(self.layer, self.num_layers))

    def for_mean(self, mean: float, num_layers: int) -> FrameFusionPruner:
        """Return the same method with this mean, for an LLM of this depth.

        Raises:
            BudgetError: the layers before `layer`, which see all tokens, already exceed this mean.
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
            similarity = similarity_to_predecessor(hidden, tokens.cells)
            joins = similarity >= self.merge_threshold
            num_joins = min(int(joins.sum()), most_merged)
            if num_joins == most_merged:
                joins = torch.zeros_like(joins).index_fill(0, top_k(similarity[None], num_joins)[0], True)
            if num_joins == most_merged or 2 * self._allowed((*tokens.counts, M - num_joins)) >= allowed:
                return merge_runs(hidden, tokens.cells, joins, M - num_joins)
        kept = top_k(attention_of_last_token(tokens)[None], max(1, round(allowed)))[0].sort().values
        return hidden.index_select(0, kept), kept

    def _allowed(self, counts: tuple[int, ...]) -> float:
        """How many tokens each of the remaining layers may have; below 0: the layers so far have exceeded the budget.

        Args:
            counts: visual tokens that ran through each of the layers so far.
        """
        if len(counts) == self.num_layers:
            return 0
        left = self.retention_ratio * self.num_layers * counts[0] - sum(counts)
        return left / (self.num_layers - len(counts))

    def _phase(self, counts: tuple[int, ...]) -> Literal["merge", "cut", "done"]:
        """What this layer has to do, which the counts of the layers before it tell."""
        for layer in range(self.layer, len(counts)):
            if counts[layer] <= max(1, math.ceil(self._allowed(counts[:layer]))):
                return "done"
            if 1 - counts[layer] / counts[layer - 1] < self.least_merged:
                return "cut" if layer == len(counts) - 1 else "done"
        return "merge"


def similarity_to_predecessor(
    hidden: Float[torch.Tensor, "M D"], cells: Int[torch.Tensor, "M"]
) -> Float[torch.Tensor, "M"]:
    """Cosine of every token with its predecessor, the token before it at the same position; -inf if there is none."""
    order = cells.argsort(stable=True)  # position by position, each in the order of time
    unit = unit_rows(hidden.detach())[order]
    cosines = unit_cosines(unit[1:, None], unit[:-1, None])[:, 0, 0]
    cosines = F.pad(cosines.masked_fill(cells[order].diff() != 0, -torch.inf), (1, 0), value=-torch.inf)
    return torch.empty_like(cosines).index_copy(0, order, cosines)


def merge_runs(
    hidden: Float[torch.Tensor, "M D"], cells: Int[torch.Tensor, "M"], joins: Bool[torch.Tensor, "M"], num_kept: int
) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
    """Average every run of tokens that join their predecessors into the token that begins the run.

    Args:
        num_kept: tokens that do not join; the first token of a position never does.
    """
    order = cells.argsort(stable=True)
    rank = torch.arange(len(order), device=order.device)
    begin = order[rank.masked_fill(joins[order], 0).cummax(0).values]  # of each token's run, position by position
    kept = joins.byte().sort(stable=True).indices[:num_kept]
    runs = torch.searchsorted(kept, torch.empty_like(begin).index_copy(0, order, begin))
    return cluster_means(hidden, runs, num_kept), kept
