"""All that `tango signals` measures of one video's tokens, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tango.annotations import Int
from tango.containers import VisualTokens
from tango.errors import TangoError
from tango.lab.signals.attention import find_peaks, peaks_touched, share_of_top, tokens_for
from tango.lab.signals.clusters import fragmentation
from tango.lab.signals.coverage import coverage
from tango.methods import Pruner, TangoPruner
from tango.ops.budget import ceil_count
from tango.ops.clustering import dpc_knn
from tango.ops.selection import mask_sinks, top_k
from tango.report.results import Json

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of a frame's tokens
ROPES: tuple[Literal["none", "frames", "seconds"], ...] = ("none", "frames", "seconds")


def attention_measures(tokens: VisualTokens, pruner: TangoPruner) -> Json:
    """Peaks and tail of a video's attention, and which part of the peaks a choice of tokens touches.

    Three choices of as many tokens as `pruner` selects in a frame: the highest, Tango's (section 4.2, eq. 5), random.
    Known sinks are masked, as Tango does. All values are means over frames; peaks touched, over frames with a peak.
    """
    assert tokens.saliency is not None
    saliency = mask_sinks(tokens.saliency.float(), tokens.sink_positions)
    T, N = saliency.shape
    peaks = find_peaks(saliency, tokens.grid)
    share = {f"{part:g}": share_of_top(saliency, part) for part in SHARES}
    k = max(1, int(ceil_count(N, pruner.retention_ratio) * (1 - pruner.context_ratio)))  # as section 5.1 shares it
    points = pruner.rotate(tokens)
    draws = torch.rand(T, N, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :k].to(saliency.device)
    choices: dict[str, Int[Tensor, "T k"]] = {
        "top_k": top_k(saliency, k),
        "diverse": torch.stack([pruner.select(saliency[t], points[t], k) for t in range(T)]),
        "random": draws,
    }
    touched = {name: peaks_touched(peaks, chosen, tokens.grid) for name, chosen in choices.items()}
    return {
        "peaks_per_frame": float(peaks.sum(1).float().mean()),
        "mass_of_top": {name: float(values.mean()) for name, values in share.items()},
        "mass_of_top_deviation": {name: float(values.std(correction=0)) for name, values in share.items()},
        "tokens_for_half": float(tokens_for(saliency, 0.5).mean()),
        "tokens_for_nine_tenths": float(tokens_for(saliency, 0.9).mean()),
        "max_over_mean": float((saliency.amax(1) / saliency.mean(1).clamp_min(1e-30)).mean()),
        "selected_per_frame": k,
        "peaks_touched": {
            name: float(values[has].mean()) if has.any() else None for name, (values, has) in touched.items()
        },
    }


def cluster_measures(tokens: VisualTokens, pruner: TangoPruner) -> Json:
    """Fragmentation of clusters without ST-RoPE, and with it on frame numbers and on seconds.

    All tokens of each of Tango's segments are clustered (DPC-KNN, eq. 4) into as many clusters as its budget has merged
    tokens: r times the context share of the segment's tokens.
    """
    lengths, N = pruner.segments(tokens), tokens.grid[0] * tokens.grid[1]
    record: dict[str, object] = {"segments": len(lengths)}
    for rope in ROPES:
        points = dataclasses.replace(pruner, rope=rope).rotate(tokens)
        labels, start, used = np.empty((len(points), N), dtype=np.int64), 0, 0
        for length in lengths:
            count = max(1, round(pruner.retention_ratio * pruner.context_ratio * length * N))
            _, cluster = dpc_knn(points[start : start + length].flatten(0, 1), count, k=pruner.num_neighbors)
            labels[start : start + length] = cluster.view(length, N).cpu().numpy() + used
            start, used = start + length, used + count
        largest, parts = fragmentation(labels.reshape(-1, *tokens.grid))
        record[rope] = {"largest_part": largest, "parts": parts}
    return record


def method_measures(
    tokens: VisualTokens, pruners: Sequence[Pruner], excluded: dict[str, str], done: Callable[[str], object]
) -> list[Json]:
    """What every method keeps, and what that covers; a method that refuses these tokens joins `excluded`.

    Args:
        done: called with a method's name before it runs.
    """
    T, N, _ = tokens.features.shape
    rows: list[Json] = []
    for pruner in pruners:
        done(pruner.name)
        try:
            pruned = pruner(tokens)
        except TangoError as error:
            excluded[pruner.name] = str(error)
            continue
        row: dict[str, object] = {
            "method": pruner.name,
            "kept": len(pruned.indices),
            "share": len(pruned.indices) / (T * N),
        }
        row["covered"] = coverage(tokens, pruned)
        row["covered_within_2_frames"] = coverage(tokens, pruned, within=2)
        rows.append(row)
    return rows
