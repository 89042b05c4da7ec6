"""DART: keep a few pivot tokens, and of the other tokens those that duplicate no pivot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import LayerTokens, Paper
from tango.methods.base import LayerPruner, Limits
from tango.methods.registry import register
from tango.ops.device import to_device
from tango.ops.selection import top_k
from tango.ops.similarity import unit_cosines, unit_rows


@register("dart")
@dataclass(frozen=True, kw_only=True)
class DartPruner(LayerPruner):
    """Keep the visual tokens with the largest keys, and those least similar to them or to pivots of the text.

    Pivots are the visual tokens with the largest keys (by L1 norm, in the layer before), and the text tokens after the
    video with the largest keys. Each pivot in turn keeps floor(retention_ratio * M / pivots) visual tokens, those of
    lowest cosine similarity to it that no earlier pivot has kept. Similarity is that of the hidden states under the
    LLM's final norm. If the pivots would keep all tokens, nothing is dropped.

    What one pivot keeps is gone for the next, so their order matters. The release's is that in which Python iterates
    over a set of their positions in the prompt. It is arbitrary, but the same everywhere, as it hangs on the positions
    alone, so it is the default here; for it the host waits once a prompt for the device. `pivot_order="norm"` does not
    wait.

    Source: arXiv:2502.11494; numbers of pivots as in appendix A.3 of arXiv:2604.09547; layer of DART's release.
    Deviation: if the text has fewer tokens than `num_text_pivots`, all of them are pivots; the release fails.
    Example:
        >>> states, kept = tango.DartPruner(retention_ratio=0.5)(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 28)
    """

    layer: int = 2
    num_visual_pivots: int = 4  # appendix A.3
    num_text_pivots: int = 4  # appendix A.3
    pivot_order: Literal["set", "norm"] = "set"  # of a Python set (release); visual, then text, each by falling norm

    limits: ClassVar[Limits] = {"num_visual_pivots": (1, math.inf), "num_text_pivots": (0, math.inf)}
    budget_rule: ClassVar[str] = "4 + 8 floor(r M / 8) of the M visual tokens that reach the layer"
    paper: ClassVar[Paper] = Paper(
        title="Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
        venue="EMNLP 2025",
        url="https://arxiv.org/abs/2502.11494",
        licence="Apache-2.0",
    )

    def prune(self, tokens: LayerTokens) -> tuple[Float[Tensor, "K D"], Int[Tensor, "K"]]:
        M = len(tokens.visual)
        norms = tokens.keys.abs().sum((1, 2))
        visual = top_k(norms[tokens.visual][None], self.num_visual_pivots)[0]
        text = top_k(norms[tokens.text][None], self.num_text_pivots)[0]
        num_pivots = len(visual) + len(text)
        share = int(M * self.retention_ratio) // num_pivots
        count = len(visual) + share * num_pivots
        if count >= M:
            return tokens.hidden[tokens.visual], torch.arange(M, device=visual.device)
        with torch.no_grad():
            pivots = torch.cat([tokens.visual[visual], tokens.text[text]])
            if self.pivot_order == "set":
                pivots = to_device(list(set(pivots.tolist())), pivots.device)
            weight = tokens.norm_weight.float()  # the norm also scales each row, which cancels in a cosine
            states = [unit_rows(tokens.hidden[rows].float() * weight) for rows in (pivots, tokens.visual)]
            similarity = unit_cosines(*states)
            kept = torch.zeros(M, dtype=torch.bool, device=visual.device).index_fill(0, visual, True)
            for row in similarity:
                free = row.masked_fill(kept, float("inf"))
                kept = kept.index_fill(0, free.argsort(stable=True)[:share], True)
            order = kept.byte().argsort(descending=True, stable=True)[:count]
        return tokens.hidden[tokens.visual[order]], order
