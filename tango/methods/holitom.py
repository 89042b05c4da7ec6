"""HoliTom's pre-LLM part: merge what does not change within a segment, and keep each frame's salient others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.methods.base import ByRatio, Limits, Pruner
from tango.methods.registry import register
from tango.ops.assembly import assemble
from tango.ops.budget import apportion, ceil_count, exact_count
from tango.ops.checks import check_finite
from tango.ops.clustering import density_peaks_counting_self
from tango.ops.device import to_device
from tango.ops.merging import merge_into_anchors
from tango.ops.segmentation import adjacent_similarity, default_threshold, segment_by_static_tokens
from tango.ops.selection import top_k


class _Segment(NamedTuple):
    """A run of frames, a mask of its static positions, and its budgets: for these, and for each frame's others."""

    start: int  # number of its first frame
    static: NDArray[np.bool_]  # (N,)
    num_static: int
    num_dynamic: list[int]  # one for each frame


@register("holitom")
@dataclass(frozen=True, kw_only=True)
class HolitomPruner(Pruner):
    """Cluster each segment's static tokens, averaged over its frames; of the others keep each frame's salient ones.

    Works with any saliency; the default is that of the authors, the attention that tokens receive in the tower.

    Source: arXiv:2505.21334 and its release, without the intra-LLM part, which is `holitom-merge`.
    Deviation: kept tokens are in the order of the video; the release hands on a segment's static tokens before the
    others of its first frame. Densities get no noise, so the centres of one or two clusters are the first of the
    positions that tie, not random ones. Averages are in float32. At least one token is kept. An exact budget above what
    averaging leaves disables averaging.
    Example:
        >>> len(tango.HolitomPruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    segment_threshold: float | None = None  # for static tokens, too; None: 0.65 up to ratio 0.1, else 0.8 (release)
    context_ratio: float = 0.0  # share of merged tokens in a frame's budget (D of the release)
    num_neighbors: int = 7  # a token itself included; at most the number of clusters (K of the release)
    merge_weight: float = 0.6  # of a centre against the mean of what joins it (BETA of the release)
    max_segment_frames: int = 1024  # MAX_WINDOW_SIZE of the release

    needs: ClassVar[Signal] = Signal.SALIENCY
    default_saliency: ClassVar[str] = "attn"  # of the tower's last layer (release)
    limits: ClassVar[Limits] = {
        **dict.fromkeys(("context_ratio", "merge_weight"), (0, 1)),
        "segment_threshold": (-1, 1),
        "num_neighbors": (2, math.inf),
        "max_segment_frames": (1, math.inf),
    }
    by_ratio: ClassVar[ByRatio] = {"segment_threshold": default_threshold}
    budget_rule: ClassVar[str] = "ceil per frame, round per static set, at a ratio raised by what averaging saves"
    paper: ClassVar[Paper] = Paper(
        title="HoliTom: Holistic Token Merging for Fast Video Large Language Models",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2505.21334",
        licence="Apache-2.0",
    )

    @property
    def resolved_segment_threshold(self) -> float:
        """`segment_threshold`, or its default at this retention ratio."""
        return default_threshold(self.retention_ratio) if self.segment_threshold is None else self.segment_threshold

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        x, device = tokens.features.flatten(0, 1), tokens.features.device
        assert tokens.saliency is not None  # the caller checked `needs`
        saliency = tokens.saliency.float()
        with torch.no_grad():
            pairs = tokens.features if T > 1 else tokens.features.expand(2, -1, -1)
            table = (adjacent_similarity(pairs)[0] + 0 * saliency.sum()).cpu()  # the only synchronisation
            check_finite(table, "features or saliency")
        indices, features, assignment = [], [], torch.full((T * N,), -1, device=device)

        def cluster(ids: Tensor, rows: Tensor, count: int) -> None:
            centres, nearest, merged = self._merge(rows, count)
            indices.append(torch.atleast_2d(ids)[0, centres])
            features.append(merged.to(x.dtype))
            assignment[ids] = indices[-1][nearest]

        for start, static, num_static, num_dynamic in self._segments(table[: T - 1].numpy(), N):
            # Flat indices are frame * N + position; `ids` is (frames of the segment, positions).
            of_segment = to_device(range(start, start + len(num_dynamic)), device)[:, None] * N
            if num_static:
                ids = of_segment + to_device(np.flatnonzero(static), device)
                rows = x.index_select(0, ids.flatten()).view(*ids.shape, -1).mean(0, dtype=torch.float32)
                cluster(ids, rows, num_static)
            ids = of_segment + to_device(np.flatnonzero(~static), device)
            ranked = top_k(saliency.flatten()[ids], ids.shape[1])
            for budget in sorted(set(num_dynamic) - {0}):
                same = to_device([frame for frame, own in enumerate(num_dynamic) if own == budget], device)
                best = ids[same].gather(1, ranked[same])
                num_salient = round(budget * (1 - self.context_ratio))
                salient = best[:, :num_salient].flatten()
                indices.append(salient)
                features.append(x.index_select(0, salient))
                assignment[salient] = salient
                for rest in best[:, num_salient:].sort(dim=-1).values if num_salient < budget else ():
                    cluster(rest, x.index_select(0, rest), budget - num_salient)
        return assemble(indices, features, assignment)

    def _segments(self, similarity: NDArray[np.float32], N: int) -> list[_Segment]:
        """Cut the video and share out its budget. Host arithmetic only."""
        threshold = self.resolved_segment_threshold
        lengths = segment_by_static_tokens(similarity, threshold, max_frames=self.max_segment_frames)
        edges = np.cumsum([0, *lengths]).tolist()
        still = similarity > threshold
        static: list[NDArray[np.bool_]] = [still[a : b - 1].all(axis=0) & (b - a > 1) for a, b in pairwise(edges)]
        M, nums = edges[-1] * N, [int(mask.sum()) for mask in static]
        left = M - sum((length - 1) * num for length, num in zip(lengths, nums, strict=True))
        total = exact_count(M, self.retention_ratio)
        if self.exact_budget and left < total:
            static, nums = [np.zeros(N, bool)] * len(lengths), [0] * len(lengths)
        # For each segment: the size of its static set, then the number of other tokens in each of its frames.
        sizes = [[num, *[N - num] * length] for num, length in zip(nums, lengths, strict=True)]
        if self.exact_budget:
            shared = iter(apportion(total, [size for segment in sizes for size in segment]))
            counts = [[next(shared) for _ in segment] for segment in sizes]
        else:
            ratio = min(self.retention_ratio / (left / M), 1.0)
            counts = [[round(num * ratio), *(ceil_count(n, ratio) for n in frames)] for num, *frames in sizes]
            if not any(map(any, counts)):
                counts[0][0] = 1  # the whole video is static, and the ratio asks for less than one token
        return [_Segment(s, z, c[0], c[1:]) for s, z, c in zip(edges[:-1], static, counts, strict=True)]

    def _merge(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster rows: the centres in order, each row's cluster, and each centre blended with its cluster's others."""
        with torch.no_grad():
            peaks, nearest = density_peaks_counting_self(rows[None], count, k=min(self.num_neighbors, count))
            centres = peaks[0].sort().values
            cluster = torch.searchsorted(centres, nearest[0])
            sizes = (cluster == torch.arange(count, device=rows.device)[:, None]).sum(1, keepdim=True)
            # A step of w n / (n - 1) towards the mean of all n rows is a step of w towards the mean without the centre.
            share = (1 - self.merge_weight) * (sizes > 1) * sizes / (sizes - 1).clamp_min(1)
        mean = merge_into_anchors(rows.float(), cluster, centres, weight=0)
        return centres, cluster, torch.lerp(rows.index_select(0, centres).float(), mean, share)
