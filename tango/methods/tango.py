"""Tango: diversity-driven selection of salient tokens, then spatio-temporal merging of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from tango.annotations import Float, Int
from tango.batched import Options, Segments, prune_segments
from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError
from tango.methods.base import ByRatio, Limits, Pruner
from tango.methods.registry import register
from tango.ops.assembly import assemble
from tango.ops.budget import exact_count, exact_segment_budgets, segment_budgets
from tango.ops.checks import check_finite_on_host
from tango.ops.clustering import dpc_knn
from tango.ops.merging import merge_into_anchors
from tango.ops.segmentation import (
    adjacent_similarity,
    default_threshold,
    segment_by_cuts,
    segment_by_static_tokens,
    static_positions,
)
from tango.ops.selection import mask_sinks, top_k
from tango.ops.similarity import unit_rows
from tango.ops.strope import check_sections, strope

_Segments = tuple[list[int], list[NDArray[np.bool_]]]


@register("tango")
@dataclass(frozen=True, kw_only=True)
class TangoPruner(Pruner):
    """Tango with the release's numbers and every merged feature at its own anchor.

    Cut the video into segments; average each segment's static tokens over its frames; keep salient, mutually
    different tokens of every frame (`1 - context_ratio` of the budget); cluster the others by content, time and
    place, and keep one merged token per cluster.

    Source: section 4 of arXiv:2604.09547.
    Deviation: where paper and release differ, the default follows the release, except that it puts merged features
    at other anchors of their group (`anchor_order="release"`) and adds random noise to densities (never here).
    """

    segmentation: Literal["holitom", "fastvid"] = "holitom"  # paper: holitom (eq. 2-3)
    segment_threshold: float | None = None  # None: 0.65 up to ratio 0.1, else 0.8 (section 5.1)
    static_threshold: float | None = None  # None: 0.8, the release's constant; the paper has one threshold
    static_merging: bool = True  # average tokens that do not change within a segment (section 4.1)
    context_ratio: float = 0.4  # share of merged tokens in the budget (section 5.1)
    alpha: float = 1.5  # candidates per salient token (section 4.2)
    num_neighbors: int = 7  # K of eq. 4
    base_time: float = 1e4  # rotary base of the time axis (Table 4)
    base_space: float = 1e3  # rotary base of rows and columns (Table 4)
    rope: Literal["seconds", "frames", "none"] = "seconds"  # what ST-RoPE counts time in; none: no ST-RoPE (Table 3)
    rope_sections: tuple[int, int, int] | None = None  # None: near-equal even parts; 1196, 1194, 1194 of 3584
    merge_weight: float = 0.6  # least weight of the anchor in its cluster (release); 0: average pooling (paper)
    anchor_order: Literal["aligned", "release"] = "aligned"  # release: merged rows land by density order
    kernels: bool = True  # Triton kernels that average and rotate, on GPUs that they run on; False: PyTorch's operators
    engine: Literal["auto", "plain", "batched"] = "auto"  # plain: this page as it stands; batched: all segments at once

    needs: ClassVar[Signal] = Signal.SALIENCY
    limits: ClassVar[Limits] = {
        **dict.fromkeys(("segment_threshold", "static_threshold"), (-1, 1)),
        **dict.fromkeys(("context_ratio", "merge_weight"), (0, 1)),
        **dict.fromkeys(("alpha", "num_neighbors", "base_time", "base_space"), (1, math.inf)),
    }
    by_ratio: ClassVar[ByRatio] = {"segment_threshold": default_threshold}
    budget_rule: ClassVar[str] = "ceil(r N) per frame; static tokens count once, their saving is shared out"
    paper: ClassVar[Paper] = Paper(
        title="Tango: Taming Visual Signals for Efficient Video Large Language Models",
        venue="arXiv 2026",
        url="https://arxiv.org/abs/2604.09547",
        licence="Apache-2.0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rope_sections is not None:
            object.__setattr__(self, "rope_sections", tuple(self.rope_sections))
        if self.engine == "batched" and (own := self._overridden()):
            raise OptionError(
                f"engine 'batched' does not call {own[0]} of {type(self).__name__}; expected auto or plain"
            )

    @property
    def wants(self) -> Signal:
        wants = self.needs | Signal.TIMESTAMPS
        return wants | Signal.FRAME_EMBEDS if self.segmentation == "fastvid" else wants

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        assert tokens.saliency is not None  # the caller checked `needs`
        x, (T, N, _) = tokens.features, tokens.features.shape
        saliency = mask_sinks(tokens.saliency.float(), tokens.sink_positions)
        with record_function("tango::similarity"):
            similarity, inverse_norms = adjacent_similarity(_at_least_two(x.detach()))
        lengths, static = self._segment(tokens, similarity)
        static, budgets = self._budgets(lengths, static)
        if self.engine == "batched" or (self.engine == "auto" and not self._overridden()):
            return prune_segments(
                x, saliency, inverse_norms[:T], tokens.grid, Segments(lengths, static, budgets), self._options(tokens)
            )

        points = self.rotate(tokens)
        index = torch.arange(T * N, device=x.device).view(T, N)
        assignment = torch.full_like(index, -1)  # the kept token that stands for each
        indices, features, start = [], [], 0
        for length, places, (num_static, num_others) in zip(lengths, static, budgets, strict=True):
            still, moving = (torch.from_numpy(own).to(x.device) for own in (places, ~places))
            frames, first = slice(start, start + length), slice(start, start + 1)
            # Section 4.1: a static token is its mean over the segment, in the segment's first frame.
            mean, score = x[frames, still].float().mean(0, keepdim=True), saliency[frames, still].mean(0, keepdim=True)
            for where, own, rows, scores, budget in (
                (first, still, mean, score, num_static),
                (frames, moving, x[frames, moving], saliency[frames, moving], num_others),
            ):
                if budget:
                    kept, merged, stands_for = self._reduce(rows, scores, points[where, own], budget)
                    tokens_of_rows = index[where, own]
                    indices.append(tokens_of_rows.flatten()[kept])
                    features.append(merged.to(x.dtype))
                    ids = torch.where(stands_for >= 0, tokens_of_rows.flatten()[stands_for], -1)
                    assignment[frames, own] = ids.view_as(tokens_of_rows)
            start += length
        return assemble(indices, features, assignment.flatten())

    def _reduce(
        self, x: Float[Tensor, "T N D"], saliency: Float[Tensor, "T N"], points: Float[Tensor, "T N D"], budget: int
    ) -> tuple[Int[Tensor, "K"], Float[Tensor, "K D"], Int[Tensor, "T*N"]]:
        """Keep `budget` of T frames of N tokens: which, their features, and which stands for each token (-1: none)."""
        T, N, _ = x.shape
        # Section 4.2: salient tokens, frame by frame.
        per_frame = int(budget // T * (1.0 - self.context_ratio))
        salient = torch.cat([t * N + self.select(saliency[t], points[t], per_frame) for t in range(T)])
        # Section 4.3: the others of all frames are clustered, and each cluster is merged into its anchor.
        x, points = x.flatten(0, 1), points.flatten(0, 1)
        free = torch.ones(T * N, dtype=torch.bool, device=x.device).index_fill_(0, salient, False)
        context, num_merged = free.nonzero()[:, 0], budget - len(salient)
        stands_for = torch.full((T * N,), -1, device=x.device).index_copy_(0, salient, salient)
        if not num_merged:
            return salient, x[salient], stands_for
        if num_merged < len(context):
            centres, cluster = _with_own_centres(*self.cluster(points[context], num_merged))
        else:
            centres = cluster = torch.arange(len(context), device=x.device)
        merged = merge_into_anchors(x[context], cluster, centres, weight=self.merge_weight)
        if self.anchor_order == "release" and num_merged < len(context):
            centres = centres[centres.argsort().argsort()]  # the i-th in the video's order lands at the i-th best
        anchors = context[centres]
        stands_for[context] = anchors[cluster]
        return torch.cat([salient, anchors]), torch.cat([x[salient], merged]), stands_for

    def select(self, saliency: Float[Tensor, "M"], points: Float[Tensor, "M D"], k: int) -> Int[Tensor, "k"]:
        """Section 4.2, eq. 5: of a frame's floor(alpha k) most salient tokens, k that differ, the best of each cluster.

        A subclass may choose k of M tokens otherwise; `points` tell tokens apart: unit rows after ST-RoPE.
        """
        candidates = top_k(saliency[None], min(int(self.alpha * k), len(saliency)))[0]  # best first
        if len(candidates) <= k:
            return candidates
        _, cluster = _with_own_centres(*self.cluster(points[candidates], k))
        rank = torch.arange(len(candidates), device=cluster.device)
        return candidates[torch.full_like(rank[:k], len(rank)).scatter_reduce_(0, cluster, rank, "amin")]

    def cluster(self, points: Float[Tensor, "M D"], k: int) -> tuple[Int[Tensor, "k"], Int[Tensor, "M"]]:
        """Sections 4.2 and 4.3, eq. 4: the rows of k centres, best first, and which of the k each row belongs to.

        A subclass may cluster by another rule.
        """
        return dpc_knn(points, k, k=self.num_neighbors)

    @torch.no_grad()
    def rotate(self, tokens: VisualTokens) -> Float[Tensor, "T N D"]:
        """Section 4.3, eq. 6-8: what tells tokens apart, unit rows turned by time and place (ST-RoPE)."""
        unit, times = unit_rows(tokens.features), self._times(tokens)
        sections = check_sections(self.rope_sections, unit.shape[-1])
        bases = {"base_time": self.base_time, "base_space": self.base_space}
        return unit if times is None else strope(unit, times, tokens.grid, sections=sections, **bases)

    def _times(self, tokens: VisualTokens) -> Tensor | None:
        """What ST-RoPE counts time in."""
        if self.rope == "frames":
            return torch.arange(float(len(tokens.features)), device="cpu")
        return tokens.timestamps_s if self.rope == "seconds" else None

    @torch.no_grad()
    def segments(self, tokens: VisualTokens) -> list[int]:
        """Frames per segment of a video, as `prune` cuts it."""
        return self._segment(tokens, adjacent_similarity(_at_least_two(tokens.features))[0])[0]

    def _segment(self, tokens: VisualTokens, similarity: Float[Tensor, "edges N"]) -> _Segments:
        """Section 4.1, eq. 2-3: frames per segment, and of each which places are averaged over its frames, (N,)."""
        T, N, _ = tokens.features.shape
        with torch.no_grad(), record_function("tango::segmentation"):
            if self.segmentation == "fastvid":
                embeds = tokens.frame_embeds
                embeds = tokens.features.mean(1, dtype=torch.float32) if embeds is None else embeds
                similarity = torch.cat([similarity, adjacent_similarity(_at_least_two(embeds[:, None]))[0]], dim=1)
            if tokens.saliency is not None:
                similarity = similarity + 0 * tokens.saliency.sum()  # NaN or infinity there shows in this table
            table = similarity.cpu().numpy()  # the only host-device synchronisation
            check_finite_on_host(table, "features or saliency")
            table, threshold = table[: T - 1], self.resolved_segment_threshold
            if self.segmentation == "fastvid":
                lengths = segment_by_cuts(table[:, N], threshold)
            else:
                lengths = segment_by_static_tokens(table[:, :N], threshold)
            is_static = (table[:, :N] > self.resolved_static_threshold) & self.static_merging
            return lengths, static_positions(lengths, is_static)

    def _budgets(
        self, lengths: list[int], static: list[NDArray[np.bool_]]
    ) -> tuple[list[NDArray[np.bool_]], list[tuple[int, int]]]:
        """What is averaged, and how many tokens each segment keeps: (static, others in all its frames)."""
        N, num_tokens = len(static[0]), sum(lengths) * len(static[0])
        saved = sum((length - 1) * int(places.sum()) for length, places in zip(lengths, static, strict=True))
        if self.exact_budget and num_tokens - saved < exact_count(num_tokens, self.retention_ratio):
            static = [np.zeros_like(places) for places in static]  # averaging would leave too few
        budgets = exact_segment_budgets if self.exact_budget else segment_budgets
        return static, budgets(lengths, [int(places.sum()) for places in static], N, self.retention_ratio)

    def _options(self, tokens: VisualTokens) -> Options:
        """What the batched engine needs to know."""
        return Options(
            times=self._times(tokens), rope_sections=self.rope_sections, base_time=self.base_time,
            base_space=self.base_space, context_ratio=self.context_ratio, alpha=self.alpha,
            num_neighbors=self.num_neighbors, merge_weight=self.merge_weight,
            by_density=self.anchor_order == "release", kernels=self.kernels,
        )  # fmt: skip

    def _overridden(self) -> list[str]:
        """Steps that a subclass has in its own way."""
        return [
            step
            for step in ("select", "cluster", "rotate")
            if getattr(type(self), step) is not getattr(TangoPruner, step)
        ]

    @property
    def resolved_segment_threshold(self) -> float:
        """`segment_threshold`, or its default at this retention ratio (section 5.1 of the paper)."""
        return default_threshold(self.retention_ratio) if self.segment_threshold is None else self.segment_threshold

    @property
    def resolved_static_threshold(self) -> float:
        """`static_threshold`, or its default."""
        return 0.8 if self.static_threshold is None else self.static_threshold


def _at_least_two(x: Tensor) -> Tensor:
    """A single frame is compared with itself, so that its values are checked like all others."""
    return x if len(x) > 1 else x.expand(2, -1, -1)


def _with_own_centres(centres: Int[Tensor, "k"], cluster: Int[Tensor, "M"]) -> tuple[Tensor, Tensor]:
    """Whatever the rule, a centre is in its own cluster."""
    return centres, cluster.index_copy(0, centres, torch.arange(len(centres), device=centres.device))


@register("tango-paper")
@dataclass(frozen=True, kw_only=True)
class TangoPaperPruner(TangoPruner):
    """The paper's text taken literally: one threshold for segments and static tokens, clusters average-pooled."""

    merge_weight: float = 0.0

    @property
    def resolved_static_threshold(self) -> float:
        return self.resolved_segment_threshold if self.static_threshold is None else self.static_threshold


@register("tango-release")
@dataclass(frozen=True, kw_only=True)
class TangoReleasePruner(TangoPruner):
    """What the released code computes, misplaced merged features included; without its random noise."""

    anchor_order: Literal["aligned", "release"] = "release"
