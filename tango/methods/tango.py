"""Tango: diversity-driven selection of salient tokens, then spatio-temporal merging of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.kernels import kernels_allowed
from tango.methods.base import Limits, Pruner
from tango.methods.registry import register
from tango.ops.blocks import upload_together
from tango.ops.checks import check_finite_on_host
from tango.ops.groups import competing_groups, lay_out, static_places
from tango.ops.merging import merge_over_frames
from tango.ops.reduction import clusters_of_tokens, reduce_rows
from tango.ops.segmentation import adjacent_similarity, default_threshold, segment_by_cuts, segment_by_static_tokens
from tango.ops.selection import mask_sinks
from tango.ops.strope import Rotation, check_sections, gather_rotated, identity_rotations, strope_rotations

# Of rotated tokens worked on at once, unless a single segment has more. A GPU takes a whole video of 256 frames; a CPU,
# what stays in its last cache.
_GPU_BYTES, _CPU_BYTES = 1 << 30, 24 << 20


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
    kernels: bool = True  # Triton kernels on GPUs that they run on; False: PyTorch's operators everywhere

    needs: ClassVar[Signal] = Signal.SALIENCY
    limits: ClassVar[Limits] = {
        **dict.fromkeys(("segment_threshold", "static_threshold"), (-1, 1)),
        **dict.fromkeys(("context_ratio", "merge_weight"), (0, 1)),
        **dict.fromkeys(("alpha", "num_neighbors", "base_time", "base_space"), (1, math.inf)),
    }
    by_ratio: ClassVar = {"segment_threshold": default_threshold}
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

    @property
    def wants(self) -> Signal:
        wants = self.needs | Signal.TIMESTAMPS
        return wants | Signal.FRAME_EMBEDS if self.segmentation == "fastvid" else wants

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        with kernels_allowed(self.kernels):
            return self._prune(tokens)

    def _prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, D = tokens.features.shape
        x, device = tokens.features.flatten(0, 1), tokens.features.device
        with torch.no_grad():
            similarity, inverse_norms = adjacent_similarity(_at_least_two(tokens.features))
            groups = competing_groups(
                *self._segment(tokens, similarity), self.retention_ratio, self.context_ratio, exact=self.exact_budget
            )
            layout = lay_out(groups, T, N, max_rows=(_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // (4 * D))
            token, span, row, members, first_members = upload_together(
                layout.tokens, layout.spans, layout.rows,
                layout.members, layout.spans.cumsum() - layout.spans, device=device,
            )  # fmt: skip
            saliency = self._saliency(tokens, members, first_members) / span
            rotations = self._rotations(tokens)

            # One workspace for all batches: fresh memory costs more than the arithmetic done in it.
            space = torch.empty(layout.largest_batch, D, device=device)

            def rotated(rows: Tensor) -> Tensor:
                out = space[: len(rows)]
                return gather_rotated(x, inverse_norms[:T].flatten(), token[rows], tokens.grid, rotations, out=out)

            reduce = partial(
                reduce_rows, gather=rotated, alpha=self.alpha, num_neighbors=self.num_neighbors,
                by_density=self.anchor_order == "release",
            )  # fmt: skip
            kept = [reduce(batch, saliency[batch.rows]) for batch in layout.batches]
            rows, anchors, absorbed_by = (torch.cat(parts) for parts in zip(*kept, strict=True))
            indices, order = token[rows].sort()
            cluster = clusters_of_tokens(rows[order], absorbed_by)[row]
            anchors = anchors[order]
        features = merge_over_frames(
            x, cluster, token[anchors], span[anchors], weight=self.merge_weight, stride=N,
            num_averaged=layout.num_averaged,
        )  # fmt: skip
        assignment = torch.where(cluster < len(indices), cluster, -1)
        return PrunedTokens(features=features, indices=indices, assignment=assignment)

    @torch.no_grad()
    def segments(self, tokens: VisualTokens) -> list[int]:
        """Frames per segment of a video, as `prune` cuts it."""
        return self._segment(tokens, adjacent_similarity(_at_least_two(tokens.features))[0])[0]

    def _segment(self, tokens: VisualTokens, similarity: Tensor) -> tuple[list[int], list[NDArray[np.bool_]]]:
        """Frames per segment, and of each on the host which places are averaged over its frames, (N,)."""
        T, N, _ = tokens.features.shape
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
        return lengths, static_places(lengths, (table[:, :N] > self.resolved_static_threshold) & self.static_merging)

    def _saliency(self, tokens: VisualTokens, members: Tensor, first_members: Tensor) -> Tensor:
        """Of every row the sum over its members, whose list holds them row after row.

        They are added up in order on every device; `index_add_` on a GPU would round differently from run to run.
        """
        assert tokens.saliency is not None  # the caller checked `needs`
        saliency = mask_sinks(tokens.saliency.float(), tokens.sink_positions).reshape(-1, 1)
        return F.embedding_bag(members, saliency, first_members, mode="sum")[:, 0]

    def _rotations(self, tokens: VisualTokens) -> tuple[Rotation, Rotation, Rotation]:
        (T, _, D), device = tokens.features.shape, tokens.features.device
        sections = check_sections(self.rope_sections, D)
        if self.rope == "none":
            return identity_rotations(T, tokens.grid, sections, device=device)
        times = tokens.timestamps_s if self.rope == "seconds" else torch.arange(float(T), device=device)
        bases = {"base_time": self.base_time, "base_space": self.base_space}
        return strope_rotations(times, tokens.grid, sections, **bases, device=device)

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
