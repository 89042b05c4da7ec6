"""SparseVLM: drop visual tokens at three layers, by the attention of the text tokens that matter to the video."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from tango.annotations import Float, Int
from tango.containers import LayerTokens, Paper
from tango.errors import OptionError
from tango.methods.base import LayerPruner
from tango.methods.registry import register
from tango.ops.attention import text_attention
from tango.ops.budget import exact_count
from tango.ops.clustering import density_peaks_counting_self
from tango.ops.flops import check_layer
from tango.ops.merging import cluster_means
from tango.ops.selection import top_k
from tango.ops.stages import mean_over_stages, solve_stages

# Nominal number of tokens -> tokens that the three stages keep of 576 (release; the first and last row are Tango's).
_TABLE = {0: (0, 0, 0), 64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110), 576: (576,) * 3}


@register("sparsevlm")
@dataclass(frozen=True, kw_only=True)
class SparseVlmPruner(LayerPruner):
    """Keep, at each of three layers, the visual tokens that raters among the text attend to most; recycle some others.

    Raters are the text tokens after the video that visual tokens resemble more than average: by the softmax over text
    of visual times text states, averaged over visual tokens. Attention is averaged over heads and raters, in float32. A
    stage keeps a published share of the tokens that entered the LLM, rounded, at least one, in order.

    Of d tokens to be dropped, recycling takes the c = floor(0.3 d) + 1 best, and keeps the means of floor(c / 10) + 1
    clusters of them. The means count towards the stage's share, so fewer tokens are kept as they are.

    Source: arXiv:2410.04417 and the first version of its release, which prunes after layers 2, 6 and 15 (counted from
    0) have run, by their attention.
    Deviation: raters are chosen anew at every stage, from the states there; if no text token is above average, all are
    raters. A recycled mean takes the position of its cluster centre; the release appends the means beyond the share,
    and renumbers all tokens. Densities get no noise. Counts scale with the video, and are interpolated linearly between
    the published ones.
    Example:
        >>> pruner = tango.SparseVlmPruner(layer=2)
        >>> pruner.layers
        (2, 7, 16)
        >>> states, kept = pruner(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 28)
    """

    layer: int = 3  # of the first stage, right after layer 2, whose attention it reads (release)
    second_layer: int = 7  # right after layer 6
    third_layer: int = 16  # right after layer 15
    retention_ratio: float = 1 / 3  # nominal: the row of 192 tokens in the published table for 576
    recycle: bool = True  # False: drop, as the second version of the release does

    budget_rule: ClassVar[str] = "round(share M) of M visual tokens at each stage, by a table of shares"
    paper: ClassVar[Paper] = Paper(
        title="SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
        venue="ICML 2025",
        url="https://arxiv.org/abs/2410.04417",
        licence="Apache-2.0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layer < self.second_layer < self.third_layer:
            raise OptionError(f"layer, second_layer and third_layer must increase, got {self.layers}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the three stages."""
        return self.layer, self.second_layer, self.third_layer

    def for_mean(self, mean: float, num_layers: int) -> SparseVlmPruner:
        """Return the same method with the nominal ratio that keeps this fraction of tokens on average over the layers.

        A first stage that would have to drop more than nine tokens in ten moves to the latest earlier layer where it
        need not.

        Raises:
            BudgetError: layer 0, which sees all tokens, already exceeds this mean; or the LLM has no such layers.
        """
        check_layer(self.third_layer, num_layers)
        layer, ratio = solve_stages(
            mean,
            num_layers=num_layers,
            layer=self.layer,
            stages=lambda first: (first, *self.layers[1:]),
            shares=stage_shares,
        )
        return dataclasses.replace(self, layer=layer, retention_ratio=ratio)

    def mean_share(self, num_layers: int) -> float:
        return mean_over_stages(self.layers, stage_shares(self.retention_ratio), num_layers)

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        M, share = len(tokens.visual), stage_shares(self.retention_ratio)[self.layers.index(tokens.layer)]
        K = min(M, exact_count(tokens.num_entered, share))
        best_first = top_k(_rated_attention(tokens)[None], M)[0]
        num_candidates, num_means = recycling(M, K) if self.recycle else (0, 0)
        kept = selected = best_first[: K - num_means].sort().values
        if num_means == 0:
            return tokens.hidden[tokens.visual[kept]], kept
        rest = best_first[K - num_means :][:num_candidates].sort().values
        states = tokens.hidden[tokens.visual[rest]]
        centres, nearest = density_peaks_counting_self(states.detach()[None], num_means, k=num_means)
        kept = torch.cat([selected, rest[centres[0]]]).sort().values
        rows, homes = torch.cat([selected, rest]), torch.cat([selected, rest[nearest[0]]])  # home: the kept token
        clusters = torch.searchsorted(kept, homes)
        return cluster_means(tokens.hidden[tokens.visual[rows]], clusters, K), kept


def stage_shares(nominal: float) -> tuple[float, ...]:
    """The share that each stage keeps of the tokens that entered the LLM, at a nominal retention ratio."""
    below, above = next(pair for pair in pairwise(_TABLE) if nominal * 576 <= pair[1] or pair[1] == 576)
    weight = (nominal * 576 - below) / (above - below)
    return tuple((a + weight * (b - a)) / 576 for a, b in zip(_TABLE[below], _TABLE[above], strict=True))


def recycling(num_tokens: int, num_kept: int) -> tuple[int, int]:
    """How many candidates to recycle into how many means, so that kept tokens and means together are `num_kept`.

    At least one token is kept as it is.
    """
    if num_kept == num_tokens:
        return 0, 0
    for num_means in range(num_kept):
        dropped = num_tokens - (num_kept - num_means)
        candidates = min(dropped, 3 * dropped // 10 + 1)
        if num_means == candidates // 10 + 1:
            break
    return candidates, num_means


def _rated_attention(tokens: LayerTokens) -> Float[torch.Tensor, "M"]:
    """Attention that each visual token receives from all raters together, averaged over heads."""
    visual, text = tokens.hidden.detach()[tokens.visual].float(), tokens.hidden.detach()[tokens.text].float()
    resemblance = (visual @ text.T).softmax(-1).mean(0)
    raters = resemblance > resemblance.mean()
    raters = (raters | ~raters.any()).float()
    rated = [raters[block] @ weights.mean(0) for block, weights in text_attention(tokens)]
    return torch.stack(rated).sum(0)
