"""The Tango pruner written the plain way: one segment at a time, full matrices, scalar comparisons.

It has the structure of the released code (as measured; none of its text) and serves two purposes: an independent
oracle for the tests, and the slow side of the benchmarks. Nothing else uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.containers import PrunedTokens, VisualTokens
from tango.methods.tango import TangoPruner


@dataclass(frozen=True, kw_only=True)
class PlainTangoPruner(TangoPruner):
    """`tango` by the plain code below, to measure whole models with it; it takes the options that this code knows."""

    name: ClassVar[str] = "tango-plain"

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        indices, features = reference_prune(tokens, self)
        return PrunedTokens(features=features, indices=indices)


def reference_prune(tokens: VisualTokens, options: TangoPruner) -> tuple[Tensor, Tensor]:
    """Return the kept indices (K,) and features (K, D) for `segmentation="holitom"`, `exact_budget=False` and
    `anchor_order="aligned"`; other values of these three are ignored."""
    x = tokens.features
    N = x.shape[1]
    assert tokens.saliency is not None
    saliency = tokens.saliency.clone()
    saliency[:, list(tokens.sink_positions)] = 0
    rotated = _strope(F.normalize(x.float(), dim=-1), tokens, options)
    normed = F.normalize(x.float(), dim=-1)
    similarity = (normed[:-1] * normed[1:]).sum(-1)
    indices, features = [], []
    start = 0
    for length in _segment(similarity, options.resolved_segment_threshold):
        part = slice(start, start + length)
        for index, feature in _reduce_segment(x[part], rotated[part], saliency[part], options):
            indices.append(index + start * N)
            features.append(feature)
        start += length
    order = torch.argsort(torch.cat(indices))
    return torch.cat(indices)[order], torch.cat(features)[order]


def _strope(normed: Tensor, tokens: VisualTokens, options: TangoPruner) -> Tensor:
    T, N, D = normed.shape
    _, W = tokens.grid
    sections = options.rope_sections or tuple(2 * (D // 6 + (axis < D // 2 % 3)) for axis in range(3))
    place, seconds = torch.arange(N, device=normed.device), tokens.timestamps_s.to(normed.device)
    positions = (
        seconds.float()[:, None].expand(T, N),
        (place // W).float().expand(T, N),
        (place % W).float().expand(T, N),
    )
    bases = (options.base_time, options.base_space, options.base_space)
    angles, halves = [], []
    start = 0
    for position, dim, base in zip(positions, sections, bases, strict=True):
        inverse_frequency = 1.0 / base ** (torch.arange(0, dim, 2, device=normed.device).float() / dim)
        angle = position[..., None] * inverse_frequency
        angles.append(torch.cat([angle, angle], dim=-1))
        section = normed[..., start : start + dim]
        first, second = section.chunk(2, dim=-1)
        halves.append(torch.cat([-second, first], dim=-1))
        start += dim
    angle = torch.cat(angles, dim=-1)
    return normed * angle.cos() + torch.cat(halves, dim=-1) * angle.sin()


def _segment(similarity: Tensor, threshold: float) -> list[int]:
    """Eq. 3 step by step, over every window that ends at each frame."""
    T = len(similarity) + 1
    static = similarity > threshold
    best, last = [torch.zeros((), dtype=torch.long, device=static.device)], [0]
    for end in range(1, T + 1):
        top, length = best[end - 1], 1
        running = torch.ones(similarity.shape[1], dtype=torch.bool, device=static.device)
        for size in range(2, end + 1):
            running = running & static[end - size]
            gain = best[end - size] + running.sum() * (size - 1)
            if gain > top:
                top, length = gain, size
        best.append(top)
        last.append(length)
    lengths: list[int] = []
    end = T
    while end > 0:
        lengths.insert(0, last[end])
        end -= last[end]
    return lengths


def _reduce_segment(x: Tensor, rotated: Tensor, saliency: Tensor, options: TangoPruner) -> list[tuple[Tensor, Tensor]]:
    n, N, _ = x.shape
    ratio, static = options.retention_ratio, torch.zeros(N, dtype=torch.bool, device=x.device)
    if n > 1 and options.static_merging:
        similarity = F.cosine_similarity(x[:-1].float(), x[1:].float(), dim=-1)
        static = (similarity > options.resolved_static_threshold).all(0)
        S = int(static.sum())
        ratio = min(ratio / ((n * N - (n - 1) * S) / (n * N)), 1.0)
    kept = []
    if static.any():
        places = static.nonzero()[:, 0]
        index, feature = _reduce_frames(
            x[:, places].mean(0)[None], rotated[:1, places], saliency[:, places].mean(0)[None], ratio, options
        )
        kept.append((places[index], feature))
    if not static.all():
        places = (~static).nonzero()[:, 0]
        index, feature = _reduce_frames(x[:, places], rotated[:, places], saliency[:, places], ratio, options)
        kept.append((index // len(places) * N + places[index % len(places)], feature))
    return kept


def _reduce_frames(
    x: Tensor, rotated: Tensor, saliency: Tensor, ratio: float, options: TangoPruner
) -> tuple[Tensor, Tensor]:
    """Salient tokens frame by frame, then context tokens of all frames together."""
    n, L, D = x.shape
    keep = max(1, math.ceil(L * ratio))
    num_salient = int(keep * (1.0 - options.context_ratio))
    selected = []
    for frame in range(n):
        candidates = saliency[frame].topk(min(int(options.alpha * num_salient), L)).indices
        chosen = candidates
        if len(candidates) > num_salient:
            points = rotated[frame, candidates]
            centres = _dpc_knn(points, num_salient, options.num_neighbors)
            nearest = torch.cdist(points, points[centres]).argmin(-1)
            chosen = torch.empty(num_salient, dtype=torch.long, device=x.device)
            for c in range(num_salient):
                members = candidates[nearest == c]
                empty = len(members) == 0
                chosen[c] = candidates[centres[c]] if empty else members[saliency[frame, members].argmax()]
        selected.append(chosen + frame * L)
    salient = torch.cat(selected)
    flat, points = x.flatten(0, 1), rotated.flatten(0, 1)
    free = torch.ones(n * L, dtype=torch.bool, device=x.device)
    free[salient] = False
    context = free.nonzero()[:, 0]
    budget = n * (keep - num_salient)
    if budget == 0:
        return salient, flat[salient]
    if budget >= len(context):
        return torch.cat([salient, context]), flat[torch.cat([salient, context])]
    centres = _dpc_knn(points[context], budget, options.num_neighbors).sort().values
    nearest = torch.cdist(points[context], points[context[centres]]).argmin(-1)
    nearest[centres] = torch.arange(budget, device=x.device)  # equal tokens may both be centres
    merged = torch.empty(budget, D, dtype=x.dtype, device=x.device)
    for c in range(budget):
        members = flat[context[nearest == c]].float()
        weight = 0.0 if options.merge_weight == 0 else max(options.merge_weight, 1 / len(members))
        merged[c] = weight * flat[context[centres[c]]].float() + (1 - weight) * members.mean(0)
    return torch.cat([salient, context[centres]]), torch.cat([flat[salient], merged])


def _dpc_knn(points: Tensor, num_clusters: int, k: int) -> Tensor:
    distance = torch.cdist(points, points)
    nearest = distance.topk(min(k + 1, len(points)), largest=False).values[:, 1:]
    density = (-(nearest**2).mean(-1)).exp()
    denser = density[None, :] > density[:, None]
    delta = torch.where(denser, distance, distance.max()).amin(-1)
    return (density * delta).topk(num_clusters).indices
