"""Tango: diversity-driven selection of salient tokens, then spatio-temporal merging of the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.errors import OptionError
from tango.methods.base import Pruner
from tango.methods.registry import register
from tango.ops.assembly import assemble
from tango.ops.blocks import blocks, take_frames, upload
from tango.ops.budget import exact_count, exact_segment_budgets, segment_budgets
from tango.ops.clustering import density_peaks
from tango.ops.merging import merge_into_anchors
from tango.ops.segmentation import adjacent_similarity, segment_by_cuts, segment_by_static_tokens
from tango.ops.selection import diverse_top_k, mask_sinks
from tango.ops.strope import Rotation, check_sections, gather_rotated, identity_rotations, strope_rotations

_CPU_GROUP_BYTES = 24 << 20  # of rotated single frames clustered at once; in a CPU's last cache


class _Group(NamedTuple):
    """Tokens that compete with each other: the same places in some frames."""

    frames: list[int]
    places: NDArray[np.int64]
    num_salient: int  # per frame
    num_context: int  # per frame; over all frames if `joint`
    joint: bool = False  # context tokens are clustered over all frames together
    span: int = 1  # of static tokens: the one frame listed stands for the mean of this many


class _Kept(NamedTuple):
    """What is kept of a group, and which kept token stands for each of its tokens (-1: none). Flat token indices."""

    indices: Tensor
    features: Tensor
    absorbed_by: Tensor


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
    rope_positions: Literal["seconds", "frames", "none"] = (
        "seconds"  # of ST-RoPE's time axis; none: no ST-RoPE (Table 3)
    )
    rope_sections: tuple[int, int, int] | None = None  # None: near-equal even parts; 1196, 1194, 1194 of 3584
    merge_weight: float = 0.6  # least weight of the anchor in its cluster (release); 0: average pooling (paper)
    anchor_order: Literal["aligned", "release"] = "aligned"  # release: merged rows land by density order

    needs: ClassVar[Signal] = Signal.SALIENCY
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
        limits = {
            "segment_threshold": (-1, 1), "static_threshold": (-1, 1), "context_ratio": (0, 1), "merge_weight": (0, 1),
            "alpha": (1, math.inf), "num_neighbors": (1, math.inf), "base_time": (1, math.inf),
            "base_space": (1, math.inf),
        }  # fmt: skip
        for option, (low, high) in limits.items():
            value = getattr(self, option)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise OptionError(f"{option} must lie in [{low}, {high}], got {value!r}")

    @property
    def wants(self) -> Signal:
        wants = self.needs | Signal.TIMESTAMPS
        return wants | Signal.FRAME_EMBEDS if self.segmentation == "fastvid" else wants

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features
        T, N, D = x.shape
        assert tokens.saliency is not None  # the caller checked `needs`
        with torch.no_grad():
            similarity, inverse_norms = adjacent_similarity(_at_least_two(x))
            inverse_norms = inverse_norms[:T]
            lengths, static = self._segment(tokens, similarity)
            groups = list(self._groups(lengths, static, x))
            saliency = mask_sinks(tokens.saliency.float(), tokens.sink_positions)
            sections = check_sections(self.rope_sections, D)
            rotations = self._rotations(tokens, sections)
            # One workspace for all groups: fresh memory costs more than the arithmetic done in it.
            space = torch.empty(max(len(g.frames) * len(g.places) for g in groups), D, device=x.device)
        kept = []
        absorbed_by = torch.full((T, N), -1, device=x.device)
        for group in groups:
            B, n = len(group.frames), len(group.places)
            covered = list(range(group.frames[0], group.frames[0] + group.span)) if group.span > 1 else group.frames
            places = upload(group.places, x.device)
            with torch.no_grad():
                out = space[: B * n].view(B, n, D)
                metric = gather_rotated(x, inverse_norms, group.frames, places, rotations, out=out)
                score = take_frames(saliency, covered).index_select(1, places)
            source = take_frames(x, covered)
            if group.span > 1:
                source = source.mean(0, keepdim=True, dtype=torch.float32).to(x.dtype)
                score = score.mean(0, keepdim=True)
            kept.append(self._reduce(group, source, places, metric, score))
            absorbed_by[upload(covered, x.device)[:, None], places] = kept[-1].absorbed_by
        indices, features, _ = zip(*kept, strict=True)
        return assemble(indices, features, absorbed_by.flatten())

    def _rotations(self, tokens: VisualTokens, sections: tuple[int, int, int]) -> tuple[Rotation, Rotation, Rotation]:
        T, N, _ = tokens.features.shape
        device = tokens.features.device
        if self.rope_positions == "none":
            return identity_rotations(T, N, sections, device=device)
        times = (
            tokens.timestamps_s
            if self.rope_positions == "seconds"
            else torch.arange(T, device=device, dtype=torch.float32)
        )
        bases = {"base_time": self.base_time, "base_space": self.base_space}
        return strope_rotations(times, tokens.grid, sections, **bases, device=device)

    def segments(self, tokens: VisualTokens) -> list[int]:
        """Frames per segment of a video, as `prune` cuts it."""
        return self._segment(tokens, adjacent_similarity(_at_least_two(tokens.features))[0])[0]

    def _segment(self, tokens: VisualTokens, similarity: Tensor) -> tuple[list[int], NDArray[np.bool_]]:
        """Frames per segment, and on the host which tokens are static between adjacent frames: (T-1, N)."""
        N = similarity.shape[1]
        if self.segmentation == "fastvid":
            embeds = tokens.frame_embeds
            embeds = tokens.features.mean(1, dtype=torch.float32) if embeds is None else embeds
            similarity = torch.cat([similarity, adjacent_similarity(_at_least_two(embeds[:, None]))[0]], dim=1)
        if tokens.saliency is not None:
            similarity = similarity + 0 * tokens.saliency.sum()  # NaN or infinity there shows in this table
        table = similarity.cpu().numpy()  # the only host-device synchronisation
        if not np.isfinite(table).all():
            raise ValueError(
                "features or saliency contain NaN or infinity; was the vision tower run in a dtype it overflows?"
            )
        table = table[: len(tokens.features) - 1]
        threshold = self.resolved_segment_threshold
        if self.segmentation == "fastvid":
            lengths = segment_by_cuts(table[:, N], threshold)
        else:
            lengths = segment_by_static_tokens(table[:, :N], threshold)
        return lengths, table[:, :N] > self.resolved_static_threshold

    @property
    def resolved_segment_threshold(self) -> float:
        """`segment_threshold`, or its default at this retention ratio (section 5.1 of the paper)."""
        default = 0.65 if self.retention_ratio <= 0.1 else 0.8
        return default if self.segment_threshold is None else self.segment_threshold

    @property
    def resolved_static_threshold(self) -> float:
        """`static_threshold`, or its default."""
        return 0.8 if self.static_threshold is None else self.static_threshold

    def _groups(self, lengths: list[int], static: NDArray[np.bool_], x: Tensor) -> Iterator[_Group]:
        """Split the video into groups of tokens and give each its budget. Host arithmetic only."""
        T, N, D = x.shape
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        merged = [
            static[start : start + length - 1].all(axis=0) if length > 1 and self.static_merging else np.zeros(N, bool)
            for start, length in zip(starts, lengths, strict=True)
        ]
        if self.exact_budget and sum(
            length * N - (length - 1) * int(places.sum()) for length, places in zip(lengths, merged, strict=True)
        ) < exact_count(T * N, self.retention_ratio):
            merged = [np.zeros(N, bool)] * len(lengths)  # averaging would leave fewer tokens than are asked for
        budgets = exact_segment_budgets if self.exact_budget else segment_budgets
        counts = budgets(lengths, [int(places.sum()) for places in merged], N, self.retention_ratio)
        singles: dict[int, list[int]] = {}
        for start, length, places, (num_static, num_dynamic) in zip(starts, lengths, merged, counts, strict=True):
            if length == 1:
                singles.setdefault(num_dynamic, []).append(start)
                continue
            if num_static:
                yield _Group([start], np.flatnonzero(places), *self._split(num_static), span=length)
            if num_dynamic:
                salient, _ = self._split(num_dynamic // length)
                frames = list(range(start, start + length))
                yield _Group(frames, np.flatnonzero(~places), salient, num_dynamic - length * salient, joint=True)
        for num_tokens, frames in singles.items():
            for block in blocks(len(frames) if num_tokens else 0, N * D * 4, x.device, cpu_bytes=_CPU_GROUP_BYTES):
                yield _Group(frames[block], np.arange(N), *self._split(num_tokens))

    def _split(self, num_tokens: int) -> tuple[int, int]:
        """Salient and context share of a budget."""
        salient = int(num_tokens * (1.0 - self.context_ratio))
        return salient, num_tokens - salient

    def _reduce(self, group: _Group, source: Tensor, places: Tensor, metric: Tensor, score: Tensor) -> _Kept:
        """Select and merge within one group. Local token ids count through its frames, N to a frame."""
        (B, n, D), N, device = metric.shape, source.shape[1], source.device
        source = source.reshape(B * N, D)
        local = _number(places.expand(B, n), N)
        set_size = B * n if group.joint else n  # tokens that are clustered together
        with torch.no_grad():
            salient = diverse_top_k(
                score, metric, group.num_salient, alpha=self.alpha, num_neighbors=self.num_neighbors
            )
            free = torch.ones(B, n, dtype=torch.bool, device=source.device).scatter_(1, salient, False)
            centres, nearest = self._cluster(group, metric, free)
            salient = local[_number(salient, n)]
            anchors = local[_number(centres.sort(dim=-1).values, set_size)]
            landing = anchors if self.anchor_order == "aligned" else local[_number(centres, set_size)]
            none = len(anchors)
            slot = torch.full((B * N,), none, device=device)
            slot[anchors] = torch.arange(none, device=device)
            cluster = torch.full_like(slot, none)
            cluster[local] = torch.where(free.flatten(), slot[local[_number(nearest, set_size)]], none)
            absorbed_by = torch.cat([landing, landing.new_full((1,), -1)])[cluster].index_copy(0, salient, salient)
            frame_start = upload(group.frames, device)[:, None] * N
            in_video = (frame_start + torch.arange(N, device=device)).flatten()  # flat index of each local token
            absorbed_by = torch.where(absorbed_by >= 0, in_video[absorbed_by], -1)[local].view(B, n)
        merged = merge_into_anchors(source, cluster, anchors, weight=self.merge_weight)
        features = torch.cat([source.index_select(0, salient), merged])
        return _Kept(in_video[torch.cat([salient, landing])], features, absorbed_by)

    def _cluster(self, group: _Group, metric: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """Centres and nearest centres of the tokens that are not salient, in one set or in one per frame."""
        num_free = metric.shape[1] - group.num_salient
        if group.joint:
            num_free *= len(metric)
            metric, free = metric.flatten(0, 1)[None], free.flatten()[None]
        places = (~free).byte().sort(dim=-1, stable=True).indices[:, :num_free]  # in order
        itself = torch.arange(free.shape[1], device=free.device).expand_as(free)
        if not 0 < group.num_context < num_free:
            return places[:, : group.num_context], itself
        rows = metric.flatten(0, 1).index_select(0, _number(places, free.shape[1])).view(*places.shape, -1)
        centres, nearest = density_peaks(rows, group.num_context, k=self.num_neighbors)
        return places.gather(1, centres), itself.scatter(1, places, places.gather(1, nearest))


def _at_least_two(x: Tensor) -> Tensor:
    """A single frame is compared with itself, so that its values are checked like all others."""
    return x if len(x) > 1 else x.expand(2, -1, -1)


def _number(ids: Tensor, size: int) -> Tensor:
    """Number the ids of several sets of `size` consecutively."""
    return (ids + torch.arange(len(ids), device=ids.device)[:, None] * size).flatten()


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
