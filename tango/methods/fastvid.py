"""FastVID: cut where frames differ, keep the salient tokens of every frame, merge the others into a few frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError
from tango.methods.base import Limits, Pruner
from tango.methods.registry import register
from tango.ops.anchor_frames import divided_counts, equal_counts, exact_counts, last_of_runs
from tango.ops.assembly import assemble
from tango.ops.budget import apportion, exact_count
from tango.ops.checks import check_finite
from tango.ops.clustering import density_peaks_counting_self
from tango.ops.device import to_device
from tango.ops.merging import merge_into_anchors, merge_others_into_anchors
from tango.ops.segmentation import adjacent_similarity, segment_by_cuts
from tango.ops.selection import top_k
from tango.ops.similarity import unit_cosines, unit_rows


@register("fastvid")
@dataclass(frozen=True, kw_only=True)
class FastVidPruner(Pruner):
    """Keep the salient tokens of every frame; merge the other tokens of a segment into anchors in some of its frames.

    Anchors are density peaks of every fourth frame, counted back from the last frame of a segment. For each of these
    frames anew, every token of the segment that is not salient joins the anchor most similar to it. With
    `rule="segment"`, as released for LLaVA-Video, the budget of a segment is divided without loss, and an anchor is
    averaged with the other tokens of its cluster alone. `segment_threshold=0.84, duplicate_threshold=0.95,
    frame_vector="mean"` beside it are as released for Qwen2.5-VL.

    Source: arXiv:2503.11187 and its releases; by default the one for LLaVA-OneVision, whatever the model.
    Deviation: densities get no noise. Fewer frames than `min_segments` are one segment each, where the releases fail.
    So do those for the LLaVA models where a frame's budget exceeds its tokens; here, anchors are then fewer with
    `rule="onevision"`, and salient tokens with `rule="segment"`, as in the release for Qwen2.5-VL. By default
    `merge_weight` is held above 1 / n, not 1 / (n + 1).
    `assignment` counts a token to the first anchor frame not before its own. `exact_budget` spreads the remainders.
    Example:
        >>> len(tango.FastVidPruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    min_segments: int = 8  # cut at the min_segments - 1 transitions of lowest similarity (c of the release)
    segment_threshold: float = 0.9  # cut wherever the similarity is lower, too (tau; 0.84 for Qwen)
    context_ratio: float = 0.4  # share of merged tokens in the budget (d)
    anchor_stride: int = 4  # frames per anchor frame (p)
    merge_weight: float = 0.6  # of an anchor against the mean of its cluster (beta)
    num_neighbors: int = 4  # a token itself included (release)
    rule: Literal["onevision", "segment"] = "onevision"  # releases: for LLaVA-OneVision; for the others
    duplicate_threshold: float | None = None  # rule "segment": frames this like the next get no budget (0.95 for Qwen)
    frame_vector: Literal["head", "mean"] = "head"  # what cuts compare; mean of all tokens, where no head is (Qwen)

    needs: ClassVar[Signal] = Signal.SALIENCY
    limits: ClassVar[Limits] = {
        **dict.fromkeys(("context_ratio", "merge_weight"), (0, 1)),
        **dict.fromkeys(("segment_threshold", "duplicate_threshold"), (-1, 1)),
        **dict.fromkeys(("min_segments", "anchor_stride"), (1, math.inf)),
        "num_neighbors": (2, math.inf),
    }
    budget_rule: ClassVar[str] = "floor(r N) per frame; less where anchors do not divide evenly or have no room"
    paper: ClassVar[Paper] = Paper(
        title="FastVID: Dynamic Density Pruning for Fast Video Large Language Models",
        venue="NeurIPS 2025",
        url="https://arxiv.org/abs/2503.11187",
        licence="MIT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.duplicate_threshold is not None and self.rule != "segment":
            raise OptionError(f"duplicate_threshold is a part of rule 'segment', got rule {self.rule!r}")

    @property
    def wants(self) -> Signal:
        return self.needs | Signal.FRAME_EMBEDS if self.frame_vector == "head" else self.needs

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        x, device = tokens.features.flatten(0, 1), tokens.features.device
        assert tokens.saliency is not None  # the caller checked `needs`
        with torch.no_grad():
            lengths, is_open = self._cut(tokens)
            counts = self._counts(lengths, is_open, N)
            # (T, N): the flat indices t * N + n of each frame, the most salient token first
            ranked = top_k(tokens.saliency.float(), N) + torch.arange(T, device=device)[:, None] * N
            best = to_device([t * N + i for t, (num, _) in enumerate(counts) for i in range(num)], device)
            salient = ranked.flatten()[best]
        merge = merge_into_anchors if self.rule == "onevision" else merge_others_into_anchors
        indices, features = [salient], [x.index_select(0, salient)]
        assignment = torch.full((T * N,), -1, device=device).index_copy_(0, salient, salient)
        is_salient = assignment >= 0
        start = 0
        for length in lengths:
            segment = slice(start * N, (start + length) * N)
            rows, free = x[segment], ~is_salient[segment]
            anchor_frames = [t for t in range(start, start + length) if counts[t][1]]
            unit = unit_rows(rows.detach()) if anchor_frames else rows
            for t in reversed(anchor_frames):
                num_salient, num_anchors = counts[t]
                rest = ranked[t, num_salient:].sort().values - segment.start
                local, cluster = self._cluster(rows, unit, free, rest, num_anchors)
                anchors = local + segment.start
                indices.append(anchors)
                features.append(merge(rows, cluster, local, weight=self.merge_weight))
                num_covered = len(rows) if t == anchor_frames[-1] else (t + 1) * N - segment.start
                stands_for = torch.cat([anchors, anchors.new_full((1,), -1)])[cluster[:num_covered]]
                own = assignment[segment][:num_covered]
                own.copy_(torch.where(free[:num_covered], stands_for, own))
            start += length
        return assemble(indices, features, assignment)

    def _cut(self, tokens: VisualTokens) -> tuple[list[int], list[bool]]:
        """The number of frames of each segment, and which frames get a budget: not those that the next one repeats."""
        x, embeds = tokens.features, tokens.frame_embeds if self.frame_vector == "head" else None
        embeds = (x.mean(1, dtype=torch.float32) if embeds is None else embeds)[:, None]
        similarity = adjacent_similarity(embeds if len(x) > 1 else embeds.expand(2, -1, -1))[0][:, 0]
        assert tokens.saliency is not None
        sums = x.sum(dtype=torch.float32) + tokens.saliency.sum()
        table = (similarity + 0 * sums).cpu()  # the only synchronisation
        check_finite(table, "features, saliency or frame_embeds")
        table = table[: len(x) - 1]
        lengths = segment_by_cuts(table.numpy(), self.segment_threshold, min_segments=self.min_segments)
        return lengths, last_of_runs(table.tolist(), lengths, self.duplicate_threshold)

    def _counts(self, lengths: list[int], is_open: list[bool], N: int) -> list[tuple[int, int]]:
        """The number of salient tokens and of anchors in each frame. Host arithmetic only."""
        totals = apportion(exact_count(len(is_open) * N, self.retention_ratio), [length * N for length in lengths])
        per_frame = max(1, int(N * self.retention_ratio))
        qwen = self.duplicate_threshold is not None  # at least one anchor, and no more than half of a frame (release)
        limits = {"min_anchors": int(qwen), "max_anchors": max(1, N // 2) if qwen else N}
        share, stride = self.context_ratio, self.anchor_stride
        counts: list[tuple[int, int]] = []
        for length, total in zip(lengths, totals, strict=True):
            here = is_open[len(counts) : len(counts) + length]
            if self.exact_budget:
                counts += exact_counts(total, share, N, here, stride)
            elif self.rule == "onevision":
                counts += equal_counts(per_frame, share, N, length, stride)
            else:
                counts += divided_counts(per_frame * length, share, N, here, stride, **limits)
        return counts

    @torch.no_grad()
    def _cluster(self, rows: Tensor, unit: Tensor, free: Tensor, rest: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Choose anchors among the rows `rest` of a segment, and assign each of its rows to one (`count`: to none)."""
        peaks, _ = density_peaks_counting_self(rows.index_select(0, rest)[None], count, k=self.num_neighbors)
        anchors = rest[peaks[0].sort().values]
        nearest = unit_cosines(unit, unit.index_select(0, anchors)).argmax(-1)
        nearest[anchors] = torch.arange(count, device=rows.device)
        return anchors, torch.where(free, nearest, count)
