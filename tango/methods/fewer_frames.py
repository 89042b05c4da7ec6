"""Fewer frames: evenly spaced frames as they are, the control that costs nothing to think of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count
from tango.ops.tiling import even_shares, pool_frames


@register("fewer-frames")
@dataclass(frozen=True, kw_only=True)
class FewerFramesPruner(Pruner):
    """Keep round(retention_ratio * T) evenly spaced frames whole, at least one; drop the others.

    `exact_budget` takes as few frames as can hold round(retention_ratio * T * N) tokens, and downsamples them a little,
    as the method `downsample` does, to exactly that number.

    Sampling fewer frames (`--num-frames`) is something else: here all frames have passed through the vision tower, so
    its cost stays, and what is kept has the timestamps and positions of the dense sampling. A family that encodes
    frames in pairs (Qwen) keeps and drops pairs. Where the prompt tells the time of every frame (Qwen3-VL), it goes on
    telling those of dropped ones.

    Example:
        >>> pruned = tango.FewerFramesPruner(retention_ratio=0.25)(tokens)
        >>> (pruned.indices // 36).bincount(minlength=8)  # tokens kept of each frame
        tensor([ 0,  0, 36,  0,  0,  0, 36,  0])
        >>> pruned = tango.FewerFramesPruner(retention_ratio=0.3, exact_budget=True)(tokens)
        >>> (pruned.indices // 36).bincount(minlength=8)
        tensor([ 0, 28,  0,  0, 29,  0, 29,  0])
    """

    budget_rule: ClassVar[str] = "N each of round(r T) frames; round(r T N) with an exact budget"
    paper: ClassVar[Paper] = Paper(title="sampling of fewer frames, a control", venue="-")

    @property
    def about_time(self) -> str:
        return "keeps frames whole"

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        if self.exact_budget:
            total = exact_count(T * N, self.retention_ratio)
            num_frames = -(-total // N)
        else:
            num_frames = exact_count(T, self.retention_ratio)
            total = num_frames * N
        counts = [0] * T
        for j, share in enumerate(even_shares(total, num_frames)):
            counts[(2 * j + 1) * T // (2 * num_frames)] = share
        return pool_frames(tokens, counts)
