"""The part of PruneVid inside the LLM: in every frame, the visual tokens that some word of the question looks at."""

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
    """Keep in every frame the visual tokens that any head of any token after the video attends to most; drop the rest.

    floor(retention_ratio * n) of a frame's n tokens stay, at least one, in their order; equal attention favours the
    earlier token. It is the second half of PruneVid, whose first half merges tokens before the LLM; it also works with
    other methods before the LLM or none. How many tokens frames have is only known on the device: the host waits once.

    Source: arXiv:2412.16117 and its release, which selects with the attention of layer 10 (counted from 0) once that
    layer has run, that is, at the input of layer 11.
    Deviation: caches of the layers before stay whole, where the release cuts them too. Tokens averaged over a segment's
    frames count to the frame they stand in; the release gives them a share of their own. A frame keeps at least one.
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
    """Which tokens are among the highest floor(share * n), at least one, of the n tokens of their frame.

    Args:
        frames: of every token, non-decreasing.
    """
    best_first = scores.argsort(descending=True, stable=True)
    order = best_first[frames[best_first].argsort(stable=True)]  # frame by frame, best first
    first = torch.searchsorted(frames, frames)  # of each token's frame
    size = torch.searchsorted(frames, frames, right=True) - first
    count = (size.double() * share + ROUNDING_ERROR).floor().clamp_min(1)
    place = torch.arange(len(frames), device=frames.device) - first  # in `order`, whose frames are the same
    return torch.empty_like(place, dtype=torch.bool).index_copy(0, order, place < count)
