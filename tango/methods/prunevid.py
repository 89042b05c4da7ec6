"""PruneVid's pre-LLM part: average what is static in a segment, then cluster what is left of every frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import Paper, PrunedTokens, VisualTokens
from tango.errors import OptionError
from tango.methods.base import Limits, Pruner
from tango.methods.registry import register
from tango.ops.assembly import assemble
from tango.ops.budget import apportion, exact_count
from tango.ops.checks import check_finite
from tango.ops.clustering import density_peaks_counting_self
from tango.ops.device import chunks, to_device
from tango.ops.merging import merge_into_anchors
from tango.ops.segmentation import segment_by_labels
from tango.ops.similarity import mean_pair_cosines


class _Segment(NamedTuple):
    """A run of frames, a mask of its static positions, and its budgets: for these, and for each frame's others."""

    start: int  # number of its first frame
    static: NDArray[np.bool_]  # (N,)
    num_static: int
    num_dynamic: list[int]  # one for each frame


@register("prunevid")
@dataclass(frozen=True, kw_only=True)
class PruneVidPruner(Pruner):
    """Average each segment's static tokens over its frames; merge these, and each frame's others, into cluster means.

    Source: section 3.2 of arXiv:2412.16117 and its release, without the intra-LLM part, which is `prunevid-select`.
    Deviation: `cluster_ratio` is solved for `retention_ratio`, and then holds for sets of any size. Kept tokens are in
    the order of the video; densities get no noise. A few frames are one segment, and a single frame has no static
    tokens; the release fails in both cases. An exact budget above what averaging leaves disables averaging.
    Example:
        >>> len(tango.PruneVidPruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    cluster_ratio: float | None = None  # clusters per token (0.5 in the paper); None: solved for retention_ratio
    max_unmerged: int = 14  # if cluster_ratio is given, sets of at most this size are not clustered (release)
    segment_ratio: float = 0.25  # clusters of frames, per frame; segments are runs of frames of one cluster
    static_threshold: float = 0.8  # a static position has a higher mean cosine over all pairs of the segment's frames
    num_neighbors: int = 7  # a token itself included (release)

    limits: ClassVar[Limits] = {
        **dict.fromkeys(("cluster_ratio", "segment_ratio"), (0, 1)),
        "static_threshold": (-1, 1),
        "max_unmerged": (0, math.inf),
        "num_neighbors": (2, math.inf),
    }
    budget_rule: ClassVar[str] = "round(r T N), or all that averaging leaves; with `cluster_ratio` whatever that gives"
    paper: ClassVar[Paper] = Paper(
        title="PruneVid: Visual Token Pruning for Efficient Video Large Language Models",
        venue="Findings of ACL 2025",
        url="https://arxiv.org/abs/2412.16117",
        licence="CC-BY-NC-SA-4.0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exact_budget and self.cluster_ratio is not None:
            raise OptionError(
                "cluster_ratio sets the number of tokens, and so does exact_budget: leave one of them out"
            )

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, D = tokens.features.shape
        x, device = tokens.features.flatten(0, 1), tokens.features.device
        with torch.no_grad():
            lengths = self._cut(tokens.features)  # here the host waits for the device; it waits once more below
            static = mean_pair_cosines(tokens.features, lengths).cpu().numpy() > self.static_threshold
        indices, features, assignment = [], [], torch.full((T * N,), -1, device=device)

        def keep(ids: Tensor, rows: Tensor, count: int) -> Tensor:
            """Merge each set of rows to `count` tokens; return the token that stands for each of `ids`."""
            centres, cluster, means = self._merge(rows, count)
            kept = ids.gather(1, centres)
            indices.append(kept.flatten())
            features.append(means.to(x.dtype))
            return kept.gather(1, cluster)

        for start, is_static, num_static, num_dynamic in self._plan(lengths, static):
            # Flat indices are frame * N + position; `ids` is (frames of the segment, positions).
            of_segment = to_device(range(start, start + len(num_dynamic)), device)[:, None] * N
            if num_static:
                ids = of_segment + to_device(np.flatnonzero(is_static), device)
                mean = x.index_select(0, ids.flatten()).view(*ids.shape, D).mean(0, dtype=torch.float32)
                assignment[ids] = keep(ids[:1], mean[None], num_static)
            ids = of_segment + to_device(np.flatnonzero(~is_static), device)
            for budget in sorted(set(num_dynamic) - {0}):
                frames = [frame for frame, own in enumerate(num_dynamic) if own == budget]
                for chunk in chunks(len(frames), ids.shape[1] * D * 8, device):
                    own = ids.index_select(0, to_device(frames[chunk], device))
                    assignment[own] = keep(own, x.index_select(0, own.flatten()).view(*own.shape, D), budget)
        return assemble(indices, features, assignment)

    def _cut(self, x: Float[Tensor, "T N D"]) -> list[int]:
        """Cut the video into segments: the number of frames of each."""
        means = x.mean(1, dtype=torch.float32)
        count = max(1, int(self.segment_ratio * len(x)))
        _, centre = density_peaks_counting_self(means[None], count, k=self.num_neighbors)
        table = torch.cat([centre[0].double(), means.double().sum()[None]]).cpu()
        check_finite(table, "features")
        return segment_by_labels(table[:-1].tolist())

    def _plan(self, lengths: list[int], static: NDArray[np.bool_]) -> list[_Segment]:
        """Share out the budget between the static sets and the frames. Host arithmetic only."""
        N = static.shape[1]
        total = exact_count(sum(lengths) * N, self.retention_ratio)
        # For each segment: the size of its static set, then the number of other tokens in each of its frames.
        sizes = [[num, *[N - num] * length] for num, length in zip(static.sum(1).tolist(), lengths, strict=True)]
        left = sum(map(sum, sizes))
        if self.exact_budget and left < total:
            static, left = np.zeros_like(static), sum(lengths) * N
            sizes = [[0, *[N] * length] for length in lengths]
        flat = [size for segment in sizes for size in segment]
        if self.cluster_ratio is None:
            counts = iter(apportion(min(total, left), flat))
        else:
            ratio = self.cluster_ratio
            counts = iter(size if size <= self.max_unmerged else max(1, int(ratio * size)) for size in flat)
        shares = [[next(counts) for _ in segment] for segment in sizes]
        starts = accumulate(lengths[:-1], initial=0)
        return [_Segment(t, mask, c[0], c[1:]) for t, mask, c in zip(starts, static, shares, strict=True)]

    def _merge(
        self, rows: Float[Tensor, "B M D"], count: int
    ) -> tuple[Int[Tensor, "B count"], Int[Tensor, "B M"], Float[Tensor, "_ D"]]:
        """Cluster each of B sets: its centres in order, the cluster of every row, and the means of all clusters."""
        B, M, _ = rows.shape
        with torch.no_grad():
            peaks, nearest = density_peaks_counting_self(rows, count, k=self.num_neighbors)
            centres = peaks.sort(dim=1).values
            cluster = torch.searchsorted(centres, nearest)
            set_ = torch.arange(B, device=rows.device)[:, None]
        anchors = (centres + set_ * M).flatten()
        means = merge_into_anchors(rows.flatten(0, 1), (cluster + set_ * count).flatten(), anchors, weight=0)
        return centres, cluster, means
