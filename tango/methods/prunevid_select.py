"""PruneVid's intra-LLM part: keep in every frame what some token of the question attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tango.annotations import Bool, Float, Int
from tango.containers import LayerTokens, Paper
from tango.methods.base import LayerPruner
from tango.methods.registry import register
from tango.ops.attention import text_attention
from tango.ops.budget import ROUNDING_ERROR


@register("prunevid-select")
@dataclass(frozen=True, kw_only=True)
class PruneVidSelectPruner(LayerPruner):
    """Keep the visual tokens of every frame that any head of any token after the video attends to most; drop the rest.

    floor(retention_ratio * n) of a frame's n tokens are kept, at least one, in order; ties go to the earlier token.
    This is PruneVid's second half; the first, `prunevid`, merges tokens pre-LLM. It also works after other
    pre-LLM methods, or alone. The number of tokens of each frame is only known on the device, so the host waits once.

    Source: arXiv:2412.16117 and its release, which selects by the attention of layer 10 (counted from 0) after that
    layer has run, that is, at the input of layer 11.
    Deviation: the caches of earlier layers are kept whole; the release prunes them, too. A token averaged over a
    segment's frames counts towards the frame that it is in; the release gives such tokens a budget of their own. A
    frame keeps at least one token.
    Example:
        >>> states, kept = tango.PruneVidSelectPruner(layer=2)(prompt)
        >>> prompt.frames[kept].bincount()  # tokens kept of each frame, of 9
        tensor([3, 3, 3, 3, 3, 3])
    """

    layer: int = 11  # right after layer 10, whose attention it reads (release)
    retention_ratio: float = 0.4  # of each frame's tokens that reach the layer (release)

    budget_rule: ClassVar[str] = "floor(r n) of the n tokens of each frame that reach the layer"
    paper: ClassVar[Paper] = Paper(
        title="PruneVid: Visual Token Pruning for Efficient Video Large Language Models",
        venue="Findings of ACL 2025",
        url="https://arxiv.org/abs/2412.16117",
        licence="CC-BY-NC-SA-4.0",
    )

    def prune(self, tokens: LayerTokens) -> tuple[Float[torch.Tensor, "K D"], Int[torch.Tensor, "K"]]:
        most = torch.stack([weights.amax((0, 1)) for _, weights in text_attention(tokens)]).amax(0)
        kept = best_of_each_frame(most, tokens.frames, self.retention_ratio).nonzero()[:, 0]
        return tokens.hidden[tokens.visual[kept]], kept


def best_of_each_frame(
    scores: Float[torch.Tensor, "M"], frames: Int[torch.Tensor, "M"], share: float
) -> Bool[torch.Tensor, "M"]:
    """Mark in every frame of n tokens the floor(share * n) tokens of highest score, at least one.

    Args:
        frames: the frame of every token, non-decreasing.
    """
    best_first = scores.argsort(descending=True, stable=True)
    order = best_first[frames[best_first].argsort(stable=True)]  # frame by frame, best first
    first = torch.searchsorted(frames, frames)  # for each token, the first token of its frame
    size = torch.searchsorted(frames, frames, right=True) - first
    count = (size.double() * share + ROUNDING_ERROR).floor().clamp_min(1)
    rank = torch.arange(len(frames), device=frames.device) - first  # of order[i] in its frame, which is frames[i], too
    return torch.empty_like(rank, dtype=torch.bool).index_copy(0, order, rank < count)
