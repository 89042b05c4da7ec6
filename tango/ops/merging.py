"""Averaging clusters of tokens into their anchors."""

from __future__ import annotations

import torch
from torch import Tensor

from tango.annotations import Float, Int
from tango.ops.device import chunks


def merge_into_anchors(
    x: Float[Tensor, "M D"], cluster: Int[Tensor, "M"], anchors: Int[Tensor, "C"], *, weight: float
) -> Float[Tensor, "C D"]:
    """Blend every anchor with the mean of its cluster: w * anchor + (1 - w) * mean, in float32.

    w is the larger of `weight` and 1 / (cluster size); with `weight = 0` the result is the plain mean.
    Every cluster must contain its anchor.

    Args:
        cluster: cluster of each row, in 0..C; C itself means none.
        anchors: row of `x` that is the anchor of each cluster.
    Source: merging of the Tango release; `weight = 0` is the average pooling of section 4.3 of arXiv:2604.09547.
    """
    mean, counts = means_and_sizes(x, cluster, len(anchors))
    if weight == 0:
        return mean.to(x.dtype)
    w = counts.reciprocal().clamp_min(weight)
    return torch.lerp(mean, x.index_select(0, anchors).float(), w).to(x.dtype)


def add_to_anchors(
    x: Float[Tensor, "M D"], cluster: Int[Tensor, "M"], anchors: Int[Tensor, "C"]
) -> Float[Tensor, "C D"]:
    """Add the mean of its cluster to every anchor, in float32. Clusters do not contain their anchors.

    Args:
        cluster: cluster of each row, in 0..C; C itself means none. An empty cluster adds nothing.
        anchors: row of `x` that is the anchor of each cluster.
    Source: contextual tokens of VisionZip (arXiv:2412.04467). Their length about doubles.
    """
    mean, _ = means_and_sizes(x, cluster, len(anchors))
    return mean.add_(x.index_select(0, anchors)).to(x.dtype)


def merge_others_into_anchors(
    x: Float[Tensor, "M D"], cluster: Int[Tensor, "M"], anchors: Int[Tensor, "C"], *, weight: float
) -> Float[Tensor, "C D"]:
    """`merge_into_anchors` with the mean of the cluster without its anchor; an anchor that is alone stays as it is.

    w is the larger of `weight` and 1 / (cluster size), which counts the anchor. `cluster` may list the anchors or not.

    Source: FastVID's releases for LLaVA-Video and Qwen2.5-VL (arXiv:2503.11187).
    """
    cluster = cluster.index_fill(0, anchors, len(anchors))
    mean, counts = means_and_sizes(x, cluster, len(anchors))
    w = (counts + 1).reciprocal().clamp_min(weight)
    return torch.lerp(mean, x.index_select(0, anchors).float(), w).to(x.dtype)


def cluster_means(x: Float[Tensor, "M D"], cluster: Int[Tensor, "M"], num_clusters: int) -> Float[Tensor, "C D"]:
    """Mean row of every cluster, in float32; a row that is alone in its cluster stays as it is.

    Args:
        cluster: cluster of each row, in 0..num_clusters; num_clusters itself means none.
    """
    return means_and_sizes(x, cluster, num_clusters)[0].to(x.dtype)


def means_and_sizes(
    x: Float[Tensor, "M D"], cluster: Int[Tensor, "M"], C: int
) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C 1"]]:
    """Mean row and size of every cluster, in float32; an empty one has mean 0."""
    D = x.shape[1]
    sums = torch.zeros(C + 1, D, device=x.device)
    for chunk in chunks(len(x), D * 4, x.device) if x.dtype != torch.float32 else (slice(None),):
        sums = sums.index_add_(0, cluster[chunk], x[chunk].float())
    counts = torch.zeros(C + 1, device=x.device).index_add_(0, cluster, torch.ones(len(x), device=x.device))
    counts = counts[:C, None]
    return sums[:C].div_(counts.clamp_min(1)), counts
