"""EarlyTom: merge similar frames between blocks of the vision tower, and select tokens by the groups that are left."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tango.annotations import Float
from tango.containers import Paper, PrunedTokens, Signal, TowerFrames, VisualTokens
from tango.methods.base import Limits, Pruner, TowerMerger
from tango.methods.registry import register
from tango.ops.budget import apportion, exact_count
from tango.ops.checks import check_finite
from tango.ops.device import to_device
from tango.ops.selection import top_k

PAPER = Paper(
    title="EarlyTom", venue="CVPR 2026", url="https://arxiv.org/abs/2605.30010", licence="Apache-2.0"
)  # fmt: skip
_TIE = 1e-6  # cosines that are nearer than this count as equal


class _Mix(NamedTuple):
    """A frame that is left: the frame that it was, the one that joins it, and the weight of the first."""

    frame: int
    other: int
    weight: float = 1.0


@register("earlytom-frames")
@dataclass(frozen=True, kw_only=True)
class EarlyTomFramesMerger(TowerMerger):
    """Group similar frames, and merge the most similar neighbours within each group.

    A group's first and last frame stay. Of the frames between them, neighbours are merged that are at least as similar
    as the group's ends, and no less similar than the next pair; weights follow from both similarities. The decisions
    are made on the host: it waits for the device once per listed block.

    Source: arXiv:2605.30010 and its release. The default blocks are the earliest of its scripts.
    Deviation: similarities that differ by rounding count as equal, so identical frames are merged; the last pair of a
    group is averaged; no frame is dropped. `earlytom-frames-release` does as released in all three.
    Example:
        >>> merger = tango.EarlyTomFramesMerger(blocks="0")
        >>> still = tango.TowerFrames(hidden=torch.ones(32, 9, 8), sources=tuple(range(32)))
        >>> len(merger(still).sources)
        26
    """

    blocks: str = "6,14,20"
    threshold: float = 0.5  # T of the release, which tunes it to benchmark and ratio: 0.3 to 0.8
    smoothing: float = 0.9  # weight of a frame's own similarity in the running mean (ema of the release)
    max_window: int = 6  # frames of a group, and one more (M of the release)

    limits: ClassVar[Limits] = {"threshold": (-1, 1), "smoothing": (0, 1), "max_window": (2, 64)}
    budget_rule: ClassVar[str] = "of 5 similar frames 3 to 4, per listed block"
    paper: ClassVar[Paper] = PAPER
    released: ClassVar[bool] = False

    def merge(self, frames: TowerFrames) -> TowerFrames:
        table = self._table(frames.hidden)
        left = self._merges(table, self._groups(table))
        first, second = (to_device([mix[i] for mix in left], frames.hidden.device) for i in (0, 1))
        weight = to_device(torch.tensor([mix.weight for mix in left]), frames.hidden.device)[:, None, None]
        rows = frames.hidden.index_select(0, first).float() * weight
        rows = (rows + frames.hidden.index_select(0, second).float() * (1 - weight)).to(frames.hidden.dtype)
        return TowerFrames(hidden=rows, sources=tuple(frames.sources[mix.frame] for mix in left))

    def groups(self, hidden: Float[Tensor, "T p P"]) -> tuple[int, ...]:
        return tuple(self._groups(self._table(hidden)))

    @torch.no_grad()
    def _table(self, hidden: Float[Tensor, "T p P"]) -> NDArray[np.float32]:
        """`similarity_table` on the host: (max_window - 1, T)."""
        table = similarity_table(hidden, self.max_window - 1).cpu()  # waits for the device
        check_finite(table, "the tower's states")
        return table.numpy()

    def _groups(self, table: NDArray[np.float32]) -> list[int]:
        """Lengths of the groups: a frame whose smoothed similarity to the group's first falls short begins another."""
        T = table.shape[1]
        lengths, start, smoothed = [], 0, 1.0
        for t in range(1, T):
            smoothed = self.smoothing * float(table[t - start - 1, start]) + (1 - self.smoothing) * smoothed
            if smoothed < self.threshold or t - start + 1 >= self.max_window:
                lengths.append(t - start)
                start, smoothed = t, 1.0
        return [*lengths, T - start]

    def _merges(self, table: NDArray[np.float32], lengths: list[int]) -> list[_Mix]:
        left, start = [], 0
        for length in lengths:
            frames = range(start, start + length)
            inner = frames[1:-1]
            if len(inner) > 1:
                left += [_Mix(start, start), *self._merge_inner(table, inner), _Mix(frames[-1], frames[-1])]
            else:
                left += [_Mix(t, t) for t in frames]
            start += length
        return left

    def _merge_inner(self, table: NDArray[np.float32], inner: range) -> list[_Mix]:
        """Merge neighbours among the frames between a group's ends."""
        ends = float(table[len(inner), inner[0] - 1])  # cosine of the group's first and last frame
        pairs = [float(table[0, t]) for t in inner[:-1]]
        left, i, tie = [], 0, 0.0 if self.released else _TIE
        while i < len(pairs):
            following = pairs[i + 1] if i + 1 < len(pairs) else None
            above = [pairs[i] - other for other in (ends, following) if other is not None]
            if all(gap > 0 if self.released else gap >= -tie for gap in above):
                last = 1.0 if self.released else 0.5
                weight = last if following is None else pairs[i] / (pairs[i] + following)
                left.append(_Mix(inner[i], inner[i + 1], weight))
                i += 2
            else:
                left.append(_Mix(inner[i], inner[i]))
                i += 1
        if not self.released and i == len(pairs):
            left.append(_Mix(inner[-1], inner[-1]))
        return left


@register("earlytom-frames-release")
@dataclass(frozen=True, kw_only=True)
class EarlyTomFramesReleaseMerger(EarlyTomFramesMerger):
    """`earlytom-frames` as released: the last frame between a group's ends is dropped unless it leads a pair.

    Source: the release of arXiv:2605.30010, with the blocks of its README.
    Example:
        >>> tango.EarlyTomFramesReleaseMerger().blocks
        '8,21,23'
    """

    blocks: str = "8,21,23"
    released: ClassVar[bool] = True


@register("earlytom")
@dataclass(frozen=True, kw_only=True)
class EarlyTomPruner(Pruner):
    """Keep each frame's most salient tokens; within a group of frames, the most salient of every stretch of a frame.

    Groups come from `tower="earlytom-frames"`; without it, every frame is one of its own. The stretches are equal runs
    of a frame's tokens in row-major order.

    Source: arXiv:2605.30010 and its release, without HoliTom's step inside the LLM, which is `holitom-merge`.
    Deviation: saliency is that of the tower's last block; the release takes the last block that merges.
    Example:
        >>> len(tango.EarlyTomPruner(retention_ratio=0.25)(tokens).indices)
        72
    """

    needs: ClassVar[Signal] = Signal.SALIENCY
    default_saliency: ClassVar[str] = "attn"  # received from all patches, as in the release
    budget_rule: ClassVar[str] = "ceil(r N) per frame, within a group round(r N)"
    paper: ClassVar[Paper] = PAPER

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        x = tokens.features.flatten(0, 1)
        assert tokens.saliency is not None  # the caller checked `needs`
        saliency = tokens.saliency.float()
        lengths = tokens.groups or (1,) * T
        inside = [length > 2 and 0 < i < length - 1 for length in lengths for i in range(length)]
        ceil, nearest = -int(-(self.retention_ratio * N - 1e-6) // 1), max(1, round(self.retention_ratio * N))
        counts = [nearest if inner else min(N, ceil) for inner in inside]
        if self.exact_budget:
            counts = apportion(exact_count(T * N, self.retention_ratio), [N] * T)
        indices = []
        for inner, k in sorted(set(zip(inside, counts, strict=True))):
            frames = [t for t in range(T) if (inside[t], counts[t]) == (inner, k)]
            rows = to_device(frames, saliency.device)
            of_frames = saliency.index_select(0, rows)
            if k:
                positions = _best_of_stretches(of_frames, k) if inner else top_k(of_frames, k)
                indices.append((positions + rows[:, None] * N).flatten())
        kept = torch.cat(indices).sort().values
        return PrunedTokens(features=x.index_select(0, kept), indices=kept)


def similarity_table(hidden: Float[Tensor, "T p P"], span: int) -> Float[Tensor, "span T"]:
    """At [d - 1, t], the cosine of frames t and t + d, averaged over their patches; 0 where there is no such frame."""
    unit = F.normalize(hidden.float(), dim=-1)
    T = len(unit)
    table = unit.new_zeros(span, T)
    for d in range(1, min(span, T - 1) + 1):
        table[d - 1, : T - d] = (unit[:-d] * unit[d:]).sum(-1).mean(-1)
    return table


def _best_of_stretches(saliency: Float[Tensor, "T N"], k: int) -> Tensor:
    """The most salient position of each of k runs, (T, k); longer runs come first."""
    N = saliency.shape[1]
    edges = np.cumsum([0, *(N // k + (i < N % k) for i in range(k))]).tolist()
    longest = -(-N // k)
    runs = [[*range(a, b), *[a] * (longest - (b - a))] for a, b in pairwise(edges)]  # filled up with the first again
    table = to_device(np.array(runs), saliency.device)
    best = top_k(saliency[:, table].flatten(0, 1), 1).view(len(saliency), k)
    return table.expand(len(saliency), -1, -1).gather(2, best[..., None])[..., 0]
