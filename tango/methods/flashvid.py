"""FlashVID: keep diverse tokens of every frame; average the others along trees through time, then in clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tango.annotations import Float, Int
from tango.containers import Paper, PrunedTokens, Signal, VisualTokens
from tango.methods.base import Limits, Presets, Pruner
from tango.methods.registry import register
from tango.ops.assembly import assemble
from tango.ops.budget import apportion, ceil_product, exact_count
from tango.ops.checks import check_finite
from tango.ops.clustering import density_peaks_counting_self
from tango.ops.device import chunks, to_device
from tango.ops.merging import cluster_means, means_and_sizes
from tango.ops.segmentation import adjacent_similarity, segment_numbers
from tango.ops.similarity import unit_cosines, unit_rows, unit_self_cosines

_NUM_NEIGHBORS = 7  # of density peaks, a token itself included; at most the number of clusters (release)
_DIVERSE = -2.0  # in place of a cosine, for tokens that are kept as they are


def _settings(layer: int = 20, ratio: float = 0.3, **options: object) -> Mapping[str, object]:
    return {**options, "layer_pruner": "flashvid-select", "pruned_layer": layer, "layer_retention_ratio": ratio}


class _Plan(NamedTuple):
    """What the host decides: which tokens are averaged into others, and how many clusters the rest of a frame forms."""

    linked: NDArray[np.bool_]  # (T, N): joins its parent in the frame before
    is_root: NDArray[np.bool_]  # (T, N): is joined by others, or alone; these go into clusters
    num_clusters: list[int]  # of each frame


@register("flashvid")
@dataclass(frozen=True, kw_only=True)
class FlashVidPruner(Pruner):
    """Keep diverse, attended tokens of every frame; average the others along trees through time, then in clusters.

    A frame's diverse tokens are picked one by one, each the farthest from those before it, where distance counts in
    proportion to saliency and to how well a token fits the mean of its segment. Every other token is linked to the most
    similar one of the frame before, wherever that is, and each tree of links becomes its mean. If more trees are left
    than the segment has room for, those that begin in one frame are averaged in clusters. A frame with room for none
    drops them: where diverse tokens fill the budget, and some frames with `exact_budget`.

    What enters the LLM is meant to be cut again there: `mean_retention_ratio` with `layer_pruner="flashvid-select"`.
    The host waits for the device once.

    Source: arXiv:2602.08024 and its release, with the settings of its wrapper; `presets` has those of its scripts.
    Deviation: a tree's mean is that of its tokens, a single frame clusters the tokens that were not picked, and none is
    picked twice; `flashvid-release` does as released in all three. Densities get no noise. Cosines are in float32 and
    rounded to multiples of 2**-18, so that ties go to the earlier token; frames that are exactly alike have links of
    one strength, all of which go if too many would stay. Newlines and the text around frames are those of the model;
    the release has one newline a frame on LLaVA-Video, and deletes the marks around frames on Qwen3-VL. Fewer frames
    than `min_segments` are one segment each, so that no tree grows in them.
    Example:
        >>> len(tango.FlashVidPruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    alpha: float = 0.7  # share of diverse tokens in a frame's budget
    merge_threshold: float = 0.8  # tokens of higher cosine are linked; higher still if too few trees would be left
    min_segments: int = 8  # cut at the min_segments - 1 transitions of lowest similarity (4 for Qwen)
    segment_threshold: float = 0.9  # cut wherever the similarity is lower, too
    event_relevance: bool = True  # diverse tokens: weigh with the mean token of the segment (release v2; v1 for Qwen)

    needs: ClassVar[Signal] = Signal.SALIENCY
    default_saliency: ClassVar[str] = "attn"  # of the tower's last used block (release)
    limits: ClassVar[Limits] = {
        "alpha": (0, 1),
        **dict.fromkeys(("merge_threshold", "segment_threshold"), (-1, 1)),
        "min_segments": (1, math.inf),
    }
    budget_rule: ClassVar[str] = "ceil(r N) per frame, and up to one more where clusters are rounded up"
    presets: ClassVar[Presets] = {
        **dict.fromkeys(("llava-onevision", "llava-video"), _settings()),
        "qwen2.5-vl": _settings(min_segments=4, event_relevance=False),
        "qwen3-vl": _settings(28, 0.1, min_segments=4, event_relevance=False),
    }
    paper: ClassVar[Paper] = Paper(
        title="FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token "
        "Merging",
        venue="ICLR 2026",
        url="https://arxiv.org/abs/2602.08024",
        licence="MIT",
    )
    released: ClassVar[bool] = False

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        T, N, _ = tokens.features.shape
        x = tokens.features.flatten(0, 1)
        budgets, num_diverse = self._budgets(T, N)
        with torch.no_grad():
            segment, weights = self._weights(tokens)
            diverse = self._pick(tokens.features, weights, num_diverse)
            cosine, parent = _links(tokens.features, diverse)
            table = (torch.cat([cosine.flatten(), segment.float()]) + 0 * weights.sum()).cpu()  # the only wait
            check_finite(table, "features or saliency")
            links, numbers = np.split(table.numpy(), [T * N])
            lengths = np.bincount(numbers.astype(np.int64)).tolist()
            plan = self._plan(links.reshape(T, N), lengths, budgets, num_diverse)
            # From here on, every token points to its parent, and a root to itself.
            linked = to_device(torch.from_numpy(plan.linked.ravel()), x.device)
            parent = torch.where(linked, parent.flatten(), torch.arange(T * N, device=x.device))
            roots = to_device(np.flatnonzero(plan.is_root), x.device)
            tree = _number(_followed(parent, max(lengths) - 1), roots, T * N)
        rows, sizes = means_and_sizes(x, tree, len(roots))
        if self.released:
            pointers = torch.zeros_like(parent).index_add_(0, parent, torch.ones_like(parent))
            rows = rows * sizes / pointers[roots][:, None]
        with torch.no_grad():
            centres, centre = _cluster(rows, plan.is_root.sum(1).tolist(), plan.num_clusters)
            cluster = _number(centre[:-1], centres, len(roots) + 1)
        merged = cluster_means(rows, cluster, len(centres)).to(x.dtype)
        indices, features = [diverse, roots[centres]], [x.index_select(0, diverse), merged]
        if self.released:
            return _spread(torch.cat(indices), torch.cat(features), T * N)
        stands_for = F.pad(roots, (0, 1), value=-1)[centre[tree]]
        return assemble(indices, features, stands_for.index_copy(0, diverse, diverse))

    def _budgets(self, T: int, N: int) -> tuple[list[int], list[int]]:
        """Tokens to keep of each frame, and how many of these are diverse ones."""
        if self.exact_budget:
            budgets = apportion(exact_count(T * N, self.retention_ratio), [N] * T)
        else:
            budgets = [max(1, ceil_product(N, self.retention_ratio))] * T
        return budgets, [ceil_product(budget, self.alpha) for budget in budgets]

    def _weights(self, tokens: VisualTokens) -> tuple[Int[Tensor, "T"], Float[Tensor, "T N"]]:
        """The segment of each frame, and how much distance from it counts for each token."""
        x, (T, N, D) = tokens.features, tokens.features.shape
        assert tokens.saliency is not None  # the caller checked `needs`
        means = x.mean(1, dtype=torch.float32)
        similarity = adjacent_similarity(means[:, None])[0][:, 0]
        segment = segment_numbers(similarity, self.segment_threshold, min_segments=self.min_segments)
        weights = tokens.saliency.float() + 0 * means.sum()
        if self.event_relevance:
            of_segment = cluster_means(means, segment, T)[segment]  # (T, D)
            for frames in chunks(T, N * D * 4, x.device):
                weights[frames] *= (x[frames] * of_segment[frames, None]).sum(-1)
        return segment, weights

    def _pick(self, x: Float[Tensor, "T N D"], weights: Float[Tensor, "T N"], counts: list[int]) -> Int[Tensor, "K"]:
        """Pick `counts[t]` tokens of each frame: flat indices, frame by frame."""
        T, N, D = x.shape
        most, picks = max(counts), []
        again = self.released and self.event_relevance
        for frames in chunks(T, N * (D + N) * 4, x.device):
            distance = 1 - unit_self_cosines(unit_rows(x[frames]))
            picks.append(_max_min_picks(distance * weights[frames, None], most, again=again))
        position = to_device([t * most + i for t, count in enumerate(counts) for i in range(count)], x.device)
        flat = torch.cat(picks) + torch.arange(T, device=x.device)[:, None] * N
        return flat.flatten()[position]

    def _plan(
        self, cosine: NDArray[np.float32], lengths: list[int], budgets: list[int], num_diverse: list[int]
    ) -> _Plan:
        """Choose the links, and share each segment's room for clusters out among its frames. Host arithmetic only."""
        linked, is_root = np.zeros(cosine.shape, bool), cosine > _DIVERSE
        num_clusters: list[int] = []
        for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
            frames, later = slice(start, start + length), slice(start + 1, start + length)
            linked[later] = cosine[later] > self.merge_threshold
            most = length * cosine.shape[1] - sum(budgets[frames])  # links that leave enough tokens
            if linked[later].sum() > most:
                linked[later] = cosine[later] > (np.sort(cosine[later], axis=None)[-most] if most else 1)
            if self.released and length == 1:
                is_root[frames] = True
            is_root[frames] &= ~linked[frames]
            sizes = is_root[frames].sum(1).tolist()
            room, left = sum(budgets[frames]) - sum(num_diverse[frames]), sum(sizes)
            if self.exact_budget:
                num_clusters += apportion(room, sizes)
            else:
                num_clusters += [-(-size * room // max(left, 1)) for size in sizes]
        return _Plan(linked, is_root, num_clusters)


@register("flashvid-release")
@dataclass(frozen=True, kw_only=True)
class FlashVidReleasePruner(FlashVidPruner):
    """`flashvid` as released: rows of trees are not means but longer, and a token may be kept twice.

    A tree's sum is divided by one more than its root has direct children: in a chain of L equal tokens, L / 2 times
    too long. A single frame clusters its diverse tokens with the others; with `event_relevance`, a diverse token may be
    picked again. The second row of such a token takes the next position, and pushes on what is there: the LLM sees the
    rows in the order of the release.

    Source: the release of arXiv:2602.08024.
    Deviation: as for `flashvid`, but for these three. Which token is picked again hangs on rounding there; here it is
    the first in the frame. There is no `assignment`, since two rows may stand for one token.
    Example:
        >>> len(tango.FlashVidReleasePruner(retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """

    released: ClassVar[bool] = True


def _max_min_picks(distance: Float[Tensor, "B N N"], k: int, *, again: bool) -> Int[Tensor, "B k"]:
    """Pick k tokens of each frame, in this order, so that each is far from those before it.

    Args:
        distance: of each column from each row, in the column's own weight; [t, i, i] is 0.
        again: whether a token may be picked a second time.
    """
    B, N, _ = distance.shape
    if k == 0:
        return torch.empty(B, 0, dtype=torch.long, device=distance.device)
    to_nearest = distance.kthvalue(min(2, N), dim=1).values  # the smallest is a token's distance from itself
    picks = [to_nearest.argmax(1, keepdim=True)]
    to_nearest = torch.full_like(to_nearest, torch.inf)
    while len(picks) < k:
        to_last = distance.gather(1, picks[-1][:, :, None].expand(-1, -1, N))[:, 0]
        to_nearest = torch.minimum(to_nearest, to_last)
        if not again:
            to_nearest.scatter_(1, picks[-1], -torch.inf)
        picks.append(to_nearest.argmax(1, keepdim=True))
    return torch.cat(picks, dim=1)


def _links(x: Float[Tensor, "T N D"], diverse: Int[Tensor, "K"]) -> tuple[Float[Tensor, "T N"], Int[Tensor, "T N"]]:
    """For each token, the most similar one of the frame before that is not diverse: the cosine, and its flat index.

    A diverse token has cosine _DIVERSE; where there is nothing to link to, the cosine is -1.
    """
    T, N, D = x.shape
    is_diverse = torch.zeros(T * N, dtype=torch.bool, device=x.device).index_fill_(0, diverse, True).view(T, N)
    cosine, parent = torch.full((T, N), -1.0, device=x.device), torch.zeros_like(is_diverse, dtype=torch.long)
    for chunk in chunks(T - 1, N * (D + N) * 4, x.device):
        before, after = slice(chunk.start, chunk.stop), slice(chunk.start + 1, chunk.stop + 1)
        unit = unit_rows(x[chunk.start : after.stop])
        cosines = unit_cosines(unit[1:], unit[:-1]).masked_fill_(is_diverse[before, None], -1)
        cosine[after], parent[after] = cosines.max(-1)
    parent += torch.arange(-1, T - 1, device=x.device)[:, None] * N
    return cosine.masked_fill_(is_diverse, _DIVERSE), parent


def _followed(pointer: Int[Tensor, "M"], most: int) -> Int[Tensor, "M"]:
    """Where a way of pointers ends that takes at most so many steps; an end points at itself."""
    for _ in range(most.bit_length()):  # each round doubles the steps
        pointer = pointer[pointer]
    return pointer


def _number(values: Int[Tensor, "any"], known: Int[Tensor, "C"], size: int) -> Int[Tensor, "any"]:
    """For each value below `size`, which of the known ones it is; C: none of them."""
    C = len(known)
    return known.new_full((size,), C).index_copy_(0, known, torch.arange(C, device=known.device))[values]


def _cluster(
    rows: Float[Tensor, "R D"], sizes: Sequence[int], counts: Sequence[int]
) -> tuple[Int[Tensor, "C"], Int[Tensor, "R+1"]]:
    """Cluster the rows of each frame: the centres, and for each row its centre, itself for one; R: in no cluster.

    One more entry, R, is that of no row.

    Args:
        sizes: rows of each frame, R in all.
        counts: clusters of each frame.
    """
    R, D = rows.shape
    alike: dict[tuple[int, int], list[int]] = {}  # frames of as many rows and clusters: the first row of each
    for start, size, count in zip(accumulate(sizes, initial=0), sizes, counts, strict=False):
        if count:
            alike.setdefault((size, count), []).append(start)
    centre = torch.full((R + 1,), R, device=rows.device)
    centres = [centre[:0]]
    for (size, count), starts in alike.items():
        for chunk in chunks(len(starts), size * (D + size) * 4, rows.device):
            own = to_device(starts[chunk], rows.device)[:, None] + torch.arange(size, device=rows.device)
            found, nearest = own, own
            if count < size:
                points = rows.index_select(0, own.flatten()).view(*own.shape, D)
                peaks, near = density_peaks_counting_self(points, count, k=min(_NUM_NEIGHBORS, count))
                found, nearest = own.gather(1, peaks), own.gather(1, near)
            centres.append(found.flatten())
            centre[own] = nearest
    return torch.cat(centres), centre


def _spread(indices: Int[Tensor, "K"], features: Float[Tensor, "K D"], M: int) -> PrunedTokens:
    """Sort rows by index; of equal ones, each takes the next position after the one before it."""
    indices, order = indices.sort(stable=True)
    place = torch.arange(len(order), device=order.device)
    pushed_on = (indices - place).cummax(0).values + place
    return PrunedTokens(
        features=features.index_select(0, order), indices=torch.minimum(pushed_on, M - len(order) + place)
    )
