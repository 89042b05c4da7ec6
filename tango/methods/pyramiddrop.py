"""PyramidDrop: drop visual tokens in three stages, by the attention of the prompt's last token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tango.annotations import Float, Int
from tango.containers import LayerTokens, Paper
from tango.errors import OptionError
from tango.methods.base import LayerPruner
from tango.methods.registry import register
from tango.ops.attention import attention_of_last_token
from tango.ops.budget import floor_count
from tango.ops.selection import top_k
from tango.ops.stages import mean_over_stages, solve_stages

_NUM_STAGES = 3  # which divide the LLM into four equal parts


@register("pyramiddrop")
@dataclass(frozen=True, kw_only=True)
class PyramidDropPruner(LayerPruner):
    """Keep, at each of three layers, the visual tokens that the prompt's last token attends to most; drop the rest.

    Stage s = 1, 2, 3 keeps floor(retention_ratio**s * M) of the M visual tokens that entered the LLM, at least one, in
    order. Attention is computed with the norm and projections of the layer that is about to run, averaged over heads.

    Source: arXiv:2410.17247 and its release, which drops half at layers 8, 16 and 24 of 32.
    Deviation: kept tokens retain their positions; the release renumbers them at every stage.
    Example:
        >>> pruner = tango.PyramidDropPruner(layer=2)
        >>> pruner.layers
        (2, 10, 19)
        >>> states, kept = pruner(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 27)
    """

    layer: int = 7  # of the first stage; the other two divide what follows into three equal parts
    retention_ratio: float = 0.5  # from one stage to the next (release)
    num_layers: int = 28  # of the LLM that `layer` is meant for

    reads: ClassVar[Literal["before", "own"]] = "own"
    budget_rule: ClassVar[str] = "floor(r^s M) of M visual tokens at stage s"
    paper: ClassVar[Paper] = Paper(
        title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        venue="CVPR 2025",
        url="https://arxiv.org/abs/2410.17247",
        licence="MIT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer >= self.num_layers:
            raise OptionError(f"layer must be below num_layers {self.num_layers}, got {self.layer}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the stages: `layer`, and those that divide the rest of the LLM into equal parts."""
        return _stages(self.layer, self.num_layers)

    def for_mean(self, mean: float, num_layers: int) -> PyramidDropPruner:
        """Return the same method with the ratio that keeps this fraction of tokens on average over the LLM's layers.

        In an LLM of another depth `layer` moves in proportion, so that the default stages are at the quarters. A first
        stage that would have to drop more than nine tokens in ten moves to the latest earlier layer where it need not.

        Raises:
            BudgetError: layer 0, which sees all tokens, already exceeds this mean.
        """
        layer, ratio = solve_stages(
            mean,
            num_layers=num_layers,
            layer=max(1, self.layer * num_layers // self.num_layers),
            stages=lambda first: _stages(first, num_layers),
            shares=_shares,
        )
        return dataclasses.replace(self, layer=layer, num_layers=num_layers, retention_ratio=ratio)

    def mean_share(self, num_layers: int) -> float:
        return mean_over_stages(self.layers, _shares(self.retention_ratio), num_layers)

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        stage = self.layers.index(tokens.layer) + 1
        K = floor_count(tokens.num_entered, self.retention_ratio**stage)
        kept = top_k(attention_of_last_token(tokens)[None], K)[0].sort().values
        return tokens.hidden[tokens.visual[kept]], kept


def _shares(factor: float) -> tuple[float, ...]:
    return tuple(factor**s for s in range(1, _NUM_STAGES + 1))


def _stages(first: int, num_layers: int) -> tuple[int, ...]:
    """The layers of the stages; fewer than three where fewer layers are left."""
    rest = num_layers - first
    return tuple(sorted({first + s * rest // _NUM_STAGES for s in range(_NUM_STAGES)}))
