"""Tango: select salient tokens that differ, then merge the others by content, time and position."""

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
    """Keep salient tokens that differ from each other; merge the others into clusters by content, time and position.

    The video is cut into segments. Tokens at static positions are averaged over the frames of their segment. A share of
    `1 - context_ratio` of the budget goes to salient tokens of every frame that differ from each other. The others are
    clustered segment by segment, and each cluster becomes one merged token.

    Source: section 4 of arXiv:2604.09547.
    Deviation: where paper and release differ, defaults follow the release, with two exceptions: the release puts merged
    features at wrong anchors of their group (here `anchor_order="release"`), and adds random noise to densities.
    Example:
        >>> pruned = tango.TangoPruner(retention_ratio=0.25, exact_budget=True)(tokens)
        >>> pruned.features.shape  # 8 frames of 36 tokens were 288
        torch.Size([72, 48])
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
    rope: Literal["seconds", "frames", "none"] = "seconds"  # unit of ST-RoPE's time axis; none: no ST-RoPE (Table 3)
    rope_sections: tuple[int, int, int] | None = None  # None: even, nearly equal: 1196, 1194, 1194 of 3584
    merge_weight: float = 0.6  # least weight of an anchor in its cluster (release); 0: average pooling (paper)
    anchor_order: Literal["aligned", "release"] = "aligned"  # release: merged rows are placed by density
    sinks: tuple[int, ...] | None = None  # positions that are never selected; None: the model's own (appendix B.3)
    kernels: bool = True  # average and rotate by Triton kernels on GPUs that run them; False: by PyTorch
    engine: Literal["auto", "plain", "batched"] = "auto"  # plain: the code of this file; batched: all segments at once

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
        for name in ("rope_sections", "sinks"):  # lists, as JSON has them
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if self.engine == "batched" and (own := self._overridden()):
            raise OptionError(
                f"engine 'batched' does not call {own[0]} of {type(self).__name__}; expected auto or plain"
            )

    @property
    def wants(self) -> Signal:
        wants = self.needs | Signal.TIMESTAMPS if self.rope == "seconds" else self.needs
        return wants | Signal.FRAME_EMBEDS if self.segmentation == "fastvid" else wants

    @property
    def about_time(self) -> str:
        return f"{reason} unless rope is 'frames' or 'none'" if (reason := super().about_time) else ""

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        assert tokens.saliency is not None  # the caller checked `needs`
        x, (T, N, _) = tokens.features, tokens.features.shape
        saliency = mask_sinks(tokens.saliency.float(), self._sinks(tokens))
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
        assignment = torch.full_like(index, -1)  # (T, N): the kept token that stands for each; -1: none
        indices, features, start = [], [], 0
        for length, is_static, (num_static, num_others) in zip(lengths, static, budgets, strict=True):
            still, moving = (torch.from_numpy(mask).to(x.device) for mask in (is_static, ~is_static))
            frames, first = slice(start, start + length), slice(start, start + 1)
            # Section 4.1: a static position has one token, the mean over the segment's frames, in the first of them.
            mean, score = x[frames, still].float().mean(0, keepdim=True), saliency[frames, still].mean(0, keepdim=True)
            for where, positions, rows, scores, budget in (
                (first, still, mean, score, num_static),
                (frames, moving, x[frames, moving], saliency[frames, moving], num_others),
            ):
                if budget:
                    kept, merged, stands_for = self._reduce(rows, scores, points[where, positions], budget)
                    ids = index[where, positions]
                    indices.append(ids.flatten()[kept])
                    features.append(merged.to(x.dtype))
                    anchors = torch.where(stands_for >= 0, ids.flatten()[stands_for], -1)
                    assignment[frames, positions] = anchors.view_as(ids)  # static: one row for all frames
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
        # Section 4.3: the other tokens of all frames are clustered, and each cluster is merged into its anchor.
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
            centres = centres[centres.argsort().argsort()]  # the release mistakes rank in the video for rank by density
        anchors = context[centres]
        stands_for[context] = anchors[cluster]
        return torch.cat([salient, anchors]), torch.cat([x[salient], merged]), stands_for

    def select(self, saliency: Float[Tensor, "M"], points: Float[Tensor, "M D"], k: int) -> Int[Tensor, "k"]:
        """Section 4.2, eq. 5: cluster a frame's floor(alpha k) most salient tokens, and pick the best of each cluster.

        A subclass may pick k of M tokens by another rule. The cosine of two `points` is the similarity of their tokens.
        """
        candidates = top_k(saliency[None], min(int(self.alpha * k), len(saliency)))[0]  # best first
        if len(candidates) <= k:
            return candidates
        _, cluster = _with_own_centres(*self.cluster(points[candidates], k))
        rank = torch.arange(len(candidates), device=cluster.device)
        return candidates[torch.full_like(rank[:k], len(rank)).scatter_reduce_(0, cluster, rank, "amin")]

    def cluster(self, points: Float[Tensor, "M D"], k: int) -> tuple[Int[Tensor, "k"], Int[Tensor, "M"]]:
        """Sections 4.2 and 4.3, eq. 4: choose k rows as centres, best first, and say which of them each row belongs to.

        A subclass may cluster by another rule.

        Example:
            >>> class EvenPruner(tango.TangoPruner):
            ...     def cluster(self, points, k):
            ...         centres = torch.arange(k) * len(points) // k
            ...         return centres, torch.cdist(points, points[centres]).argmin(1)
            >>> len(EvenPruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
            72
        """
        return dpc_knn(points, k, k=self.num_neighbors)

    @torch.no_grad()
    def rotate(self, tokens: VisualTokens) -> Float[Tensor, "T N D"]:
        """Section 4.3, eq. 6-8: the features as unit rows, rotated by time and position (ST-RoPE).

        A subclass may return other points; their cosines are what `select` and `cluster` compare tokens by.
        """
        unit, times = unit_rows(tokens.features), self._times(tokens)
        sections = check_sections(self.rope_sections, unit.shape[-1])
        bases = {"base_time": self.base_time, "base_space": self.base_space}
        return unit if times is None else strope(unit, times, tokens.grid, sections=sections, **bases)

    def _sinks(self, tokens: VisualTokens) -> tuple[int, ...]:
        """The positions that attract attention whatever a video shows."""
        N, sinks = tokens.features.shape[1], tokens.sink_positions if self.sinks is None else self.sinks
        if any(not 0 <= position < N for position in sinks):
            raise OptionError(f"sinks must lie in [0, {N}), the positions of a {tokens.grid} grid; got {sinks}")
        return sinks

    def _times(self, tokens: VisualTokens) -> Tensor | None:
        """The time of each frame on ST-RoPE's time axis; None: no ST-RoPE."""
        if self.rope == "frames":
            return torch.arange(float(len(tokens.features)), device="cpu")
        return tokens.timestamps_s if self.rope == "seconds" else None

    @torch.no_grad()
    def segments(self, tokens: VisualTokens) -> list[int]:
        """Cut a video as `prune` does: the number of frames of each segment."""
        return self._segment(tokens, adjacent_similarity(_at_least_two(tokens.features))[0])[0]

    def _segment(self, tokens: VisualTokens, similarity: Float[Tensor, "edges N"]) -> _Segments:
        """Section 4.1, eq. 2-3: the number of frames of each segment, and a mask (N,) of its static positions."""
        T, N, _ = tokens.features.shape
        with torch.no_grad(), record_function("tango::segmentation"):
            if self.segmentation == "fastvid":
                embeds = tokens.frame_embeds
                embeds = tokens.features.mean(1, dtype=torch.float32) if embeds is None else embeds
                similarity = torch.cat([similarity, adjacent_similarity(_at_least_two(embeds[:, None]))[0]], dim=1)
            if tokens.saliency is not None:
                similarity = similarity + 0 * tokens.saliency.sum()  # carries NaN and infinity into the table
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
        """The static positions that are averaged, and each segment's budgets: (static tokens, all its other tokens)."""
        N, num_tokens = len(static[0]), sum(lengths) * len(static[0])
        saved = sum((length - 1) * int(mask.sum()) for length, mask in zip(lengths, static, strict=True))
        if self.exact_budget and num_tokens - saved < exact_count(num_tokens, self.retention_ratio):
            static = [np.zeros_like(mask) for mask in static]  # averaging would leave too few tokens
        budgets = exact_segment_budgets if self.exact_budget else segment_budgets
        return static, budgets(lengths, [int(mask.sum()) for mask in static], N, self.retention_ratio)

    def _options(self, tokens: VisualTokens) -> Options:
        """The options of the batched engine."""
        return Options(
            times=self._times(tokens), rope_sections=self.rope_sections, base_time=self.base_time,
            base_space=self.base_space, context_ratio=self.context_ratio, alpha=self.alpha,
            num_neighbors=self.num_neighbors, merge_weight=self.merge_weight,
            by_density=self.anchor_order == "release", kernels=self.kernels,
        )  # fmt: skip

    def _overridden(self) -> list[str]:
        """The steps that a subclass overrides."""
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
    """Double a single frame, so that it is compared with itself and its values are checked like all others."""
    return x if len(x) > 1 else x.expand(2, -1, -1)


def _with_own_centres(centres: Int[Tensor, "k"], cluster: Int[Tensor, "M"]) -> tuple[Tensor, Tensor]:
    """Assign each centre to its own cluster, whatever the rule says."""
    return centres, cluster.index_copy(0, centres, torch.arange(len(centres), device=centres.device))


@register("tango-paper")
@dataclass(frozen=True, kw_only=True)
class TangoPaperPruner(TangoPruner):
    """Tango as the paper's text says: one threshold for segments and static tokens, average pooling of clusters.

    Example:
        >>> len(tango.TangoPaperPruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    merge_weight: float = 0.0

    @property
    def resolved_static_threshold(self) -> float:
        return self.resolved_segment_threshold if self.static_threshold is None else self.static_threshold


@register("tango-release")
@dataclass(frozen=True, kw_only=True)
class TangoReleasePruner(TangoPruner):
    """Tango as the released code computes it, misplaced merged features included, but without its random noise.

    Example:
        >>> len(tango.TangoReleasePruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    anchor_order: Literal["aligned", "release"] = "release"
