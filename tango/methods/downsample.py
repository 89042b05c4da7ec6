"""Downsampling: every frame at a lower resolution, the control that any way of choosing tokens must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.budget import exact_count
from tango.ops.tiling import even_shares, pool_frames


@register("downsample")
@dataclass(frozen=True, kw_only=True)
class DownsamplePruner(Pruner):
    """Average every frame over retention_ratio * N cells that tile it; each mean stands in its cell's middle.

    Cells are about square. Frames have one cell more or less, so that any ratio is met exactly: at a tenth, frames of
    14 x 14 tokens have 20 cells, 4 strips of 5, or 19. With fewer cells than frames, some frames vanish.

    It comes after vision tower and projector, so the tower's cost stays. Making the video's frames smaller would lower
    it, but a processor that resizes all frames to one size makes them as large as before. Under M-RoPE a mean has the
    position of the token in its cell's middle, up to half a token off.

    Source: a control as in VTC-Bench (arXiv:2510.07143), which resizes images before the tower, and no videos.
    Example:
        >>> pruned = tango.DownsamplePruner(retention_ratio=0.25)(tokens)
        >>> pruned.indices[:9]  # of 6 x 6 tokens: 3 x 3 cells of 2 x 2
        tensor([ 0,  2,  4, 12, 14, 16, 24, 26, 28])
    """

    budget_rule: ClassVar[str] = "round(r T N), always exact"
    paper: ClassVar[Paper] = Paper(title="average pooling, a control", venue="-")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        return pool_frames(tokens, even_shares(exact_count(T * N, self.retention_ratio), T))
