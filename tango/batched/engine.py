"""What `tango.methods.tango` does segment by segment and frame by frame, done for all segments of a video at once.

The engine keeps the same tokens, in as many launches as one segment needs: on a GPU at most 200 at 32 frames. Every
competing token is a row (`layout`); salient rows are chosen in all frames together (`selection`), the others clustered
in all segments together (`clustering`). On a CPU a batch is what stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import record_function

from tango.annotations import Float
from tango.batched.layout import arrange, competing_groups
from tango.batched.merging import merge_over_frames
from tango.batched.reduction import Kept, clusters_of_tokens, reduce_rows
from tango.batched.rotation import gather_rotated, identity_rotations
from tango.containers import PrunedTokens
from tango.ops.clustering import TICK_LENGTH
from tango.ops.device import to_device_together
from tango.ops.strope import check_sections, strope_rotations

# Bytes of rotated tokens worked on at once, unless a single segment has more. A GPU takes a whole video of 256 frames,
# a CPU what stays in its last cache.
_GPU_BYTES, _CPU_BYTES = 1 << 30, 24 << 20


class Segments(NamedTuple):
    """The segments of a video, and the budgets of each."""

    lengths: Sequence[int]  # frames of each segment
    static: Sequence[NDArray[np.bool_]]  # which positions of a segment are averaged over its frames, (N,)
    budgets: Sequence[tuple[int, int]]  # tokens to keep of a segment: static ones, others in all its frames


class Options(NamedTuple):
    """The options of `tango.methods.tango.TangoPruner` that matter once a video is cut."""

    times: Tensor | None  # time of each frame for ST-RoPE, (T,); None: no ST-RoPE
    rope_sections: tuple[int, int, int] | None
    base_time: float
    base_space: float
    context_ratio: float
    alpha: float
    num_neighbors: int
    merge_weight: float
    by_density: bool  # exchange the positions of a segment's merged rows, as Tango's release does
    kernels: bool  # use the Triton kernels where they run


def prune_segments(
    features: Float[Tensor, "T N D"],
    saliency: Float[Tensor, "T N"],
    inverse_norms: Float[Tensor, "T N"],
    grid: tuple[int, int],
    segments: Segments,
    options: Options,
) -> PrunedTokens:
    """Select and merge tokens within segments; never waits for the device.

    Args:
        inverse_norms: 1 / L2 norm of the features, see `tango.ops.segmentation.adjacent_similarity`.
    Source: sections 4.1-4.3 of arXiv:2604.09547.
    """
    (T, N, D), device = features.shape, features.device
    x = features.flatten(0, 1)
    with torch.no_grad():
        max_rows = (_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // (4 * D)
        layout = arrange(competing_groups(*segments, options.context_ratio), T, N, max_rows=max_rows)
        token, span, row, members, first_members = to_device_together(
            layout.tokens, layout.spans, layout.rows,
            layout.members, layout.spans.cumsum() - layout.spans, device=device,
        )  # fmt: skip
        # For every row the mean over its members. `index_add_` on a GPU would round differently from run to run.
        scores = F.embedding_bag(members, saliency.reshape(-1, 1), first_members, mode="sum")[:, 0] / span
        points = _points(x, inverse_norms, grid, layout.largest_batch, options)
        kept = [
            reduce_rows(
                batch, scores[batch.rows], partial(points, token[batch.rows]), alpha=options.alpha,
                num_neighbors=options.num_neighbors, by_density=options.by_density,
            )
            for batch in layout.batches
        ]  # fmt: skip
        rows, anchors, assignment = _numbered_together(kept)
        indices, order = token[rows].sort()
        cluster = clusters_of_tokens(rows[order], assignment)[row]
        anchors = anchors[order]
    with record_function("tango::merging"):
        merged = merge_over_frames(
            x, cluster, token[anchors], span[anchors], weight=options.merge_weight, stride=N,
            num_averaged=layout.num_averaged, kernels=options.kernels,
        )  # fmt: skip
    assignment = cluster.masked_fill(cluster == len(indices), -1)
    return PrunedTokens(features=merged, indices=indices, assignment=assignment)


def _points(
    x: Float[Tensor, "M D"], inverse_norms: Float[Tensor, "T N"], grid: tuple[int, int], most: int, options: Options
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gathers and rotates n tokens of a list, (n, D), in units in which 1 is a tick.

    Args:
        most: the most rows that are gathered at once. A CPU reuses one workspace for all: fresh memory would cost it
            more than the arithmetic.
    """
    T, D, device = len(inverse_norms), x.shape[1], x.device
    sections = check_sections(options.rope_sections, D)
    if options.times is None:
        rotations = identity_rotations(T, grid, sections, device=device)
    else:
        bases = {"base_time": options.base_time, "base_space": options.base_space}
        rotations = strope_rotations(options.times, grid, sections, **bases, device=device)
    scale = inverse_norms.flatten() / TICK_LENGTH  # a power of two
    on_cpu = device.type == "cpu"
    space = torch.empty(most if on_cpu else 0, D, device=device)

    def gather(tokens: Tensor, numbers: Tensor) -> Tensor:
        with record_function("tango::rotation"):
            out = space[: len(numbers)] if on_cpu else space.new_empty(len(numbers), D)
            return gather_rotated(x, scale, tokens[numbers], grid, rotations, out=out, kernels=options.kernels)

    return gather


def _numbered_together(batches: Sequence[Kept]) -> Kept:
    """Join what is kept of all batches; rows are numbered through, from the first of the first batch."""
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0, *(len(batch.assignment) for batch in batches[:-1])]).tolist()
    moved = [
        Kept(rows + start, anchors + start, torch.where(assignment < 0, -1, assignment + start))
        for (rows, anchors, assignment), start in zip(batches, starts, strict=True)
    ]
    return Kept(*(torch.cat(parts) for parts in zip(*moved, strict=True)))
