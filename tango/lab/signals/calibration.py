"""Settings that hang on the model, suggested from a few videos: sinks, similarity thresholds, the budget's rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tango.annotations import Float
from tango.containers import VisualTokens
from tango.lab.signals.sinks import SinkSearch, find_sinks
from tango.methods import TangoPruner
from tango.ops.budget import segment_budgets
from tango.ops.checks import check_finite_on_host
from tango.ops.segmentation import adjacent_similarity, segment_by_static_tokens, static_positions
from tango.ops.similarity import unit_rows

FALSE_STATIC = 0.01  # share of unrelated tokens that a threshold may take for the same content
OFF_BUDGET = 0.1  # a share of kept tokens that misses its ratio by more than this part of it is off
_SAMPLED = 4  # frames of a video that are compared with other videos'


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What is remembered of one video; its tokens need not be held."""

    grid: tuple[int, int]
    saliency: Float[Tensor, "T N"]
    similarity: NDArray[np.float32]  # (T-1, N), between neighbouring frames
    sample: Float[Tensor, "frames N D"]  # unit rows of some frames, evenly spaced
    known_sinks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Options of `tango` with a reason for each, and what they were drawn from."""

    options: dict[str, object]
    reasons: dict[str, str]  # by option; also those of options that stay as they are
    search: SinkSearch | None  # None: the grids differ
    kept: list[float] = field(default_factory=list)  # share that each video keeps at the nominal ratio


def observe(tokens: VisualTokens) -> Observed:
    """Look at the tokens of one video, whose saliency must be there.

    Raises:
        NotFiniteError: features or saliency hold NaN or infinity.
    """
    assert tokens.saliency is not None
    x, T = tokens.features, len(tokens.features)
    frames = torch.linspace(0, T - 1, _SAMPLED).round().long().to(x.device)
    saliency, similarity = tokens.saliency.float().cpu(), adjacent_similarity(x)[0].cpu().numpy()
    check_finite_on_host(np.append(similarity.ravel(), saliency.numpy().ravel()), "features or saliency")
    return Observed(
        grid=tokens.grid,
        saliency=saliency,
        similarity=similarity,
        sample=unit_rows(x[frames]).cpu(),
        known_sinks=tokens.sink_positions,
    )


def suggest(videos: Sequence[Observed], retention_ratio: float) -> Suggestion:
    """Suggest options of `tango` for a model, from a few of its videos.

    * `sinks`: those that `find_sinks` finds. Where it finds none, or cannot tell, the model's own stay.
    * thresholds: the default, unless tokens at the same position of two videos exceed it in more than 1 % of cases:
      then the value that 1 % of them exceed, the median over every two videos. They are never lowered: that unrelated
      tokens are less alike in one model than in another does not say that neighbours above a lower threshold show the
      same.
    * `exact_budget`: true, if a video keeps a share that misses the ratio by more than a tenth of it, because static
      tokens count once.

    Args:
        retention_ratio: the share of tokens to keep; thresholds have their defaults at this ratio.
    """
    default = TangoPruner(retention_ratio=retention_ratio)
    options: dict[str, object] = {"retention_ratio": retention_ratio}
    reasons: dict[str, str] = {}
    search = find_sinks([video.saliency for video in videos]) if len({v.grid for v in videos}) == 1 else None
    if search is not None and search.sinks:
        options["sinks"] = [sink.position for sink in search.sinks]
    reasons["sinks"] = _why_sinks(search, videos[0].known_sinks)
    unrelated, neighbours = _unrelated(videos), np.concatenate([video.similarity.ravel() for video in videos])
    thresholds = {"segment": default.resolved_segment_threshold, "static": default.resolved_static_threshold}
    for name, usual in thresholds.items():
        value, reasons[f"{name}_threshold"] = _threshold(usual, unrelated, neighbours)
        options[f"{name}_threshold"] = thresholds[name] = value
    kept = [kept_share(video, retention_ratio, thresholds["segment"], thresholds["static"]) for video in videos]
    off = [share for share in kept if abs(share / retention_ratio - 1) > OFF_BUDGET]
    options["exact_budget"] = bool(off)
    nominal = f"at ratio {retention_ratio:g} these videos keep {_percent(min(kept))} to {_percent(max(kept))}"
    reasons["exact_budget"] = f"{nominal}, {len(off)} of {len(kept)} off by more than a tenth"
    return Suggestion(options=options, reasons=reasons, search=search, kept=kept)


def kept_share(video: Observed, retention_ratio: float, segment_threshold: float, static_threshold: float) -> float:
    """The share of a video's tokens that `tango` keeps with these thresholds, from similarities alone."""
    N = video.similarity.shape[1]
    lengths = segment_by_static_tokens(video.similarity, segment_threshold)
    static = static_positions(lengths, video.similarity > static_threshold)
    budgets = segment_budgets(lengths, [int(mask.sum()) for mask in static], N, retention_ratio)
    return sum(map(sum, budgets)) / (sum(lengths) * N)


def _unrelated(videos: Sequence[Observed]) -> list[NDArray[np.float32]]:
    """For every two videos of one grid, cosines between their tokens at the same position."""
    pairs = [(a.sample, b.sample) for a, b in combinations(videos, 2) if a.grid == b.grid]
    return [(a * b).sum(-1).flatten().numpy() for a, b in pairs]


def _threshold(
    usual: float, unrelated: Sequence[NDArray[np.float32]], neighbours: NDArray[np.float32]
) -> tuple[float, str]:
    """A threshold, and why."""
    if not unrelated:
        return usual, "the default; that needs two videos of one grid to be judged"

    def exceed(value: float) -> float:
        return float(np.median([(pair > value).mean() for pair in unrelated]))

    # The median over pairs: two videos of one scene, or with the same black bars, are as alike as neighbours.
    highest = float(np.median([np.quantile(pair, 1 - FALSE_STATIC, method="higher") for pair in unrelated]))
    value = usual if highest <= usual else min(1.0, math.ceil(highest * 1000) / 1000)
    shares = f"{_percent(exceed(value))} of the tokens of two videos are more alike"
    if len(neighbours):
        shares += f", {_percent(float((neighbours > value).mean()))} of those of neighbouring frames"
    if value == usual:
        return usual, f"the default; {shares}"
    return value, f"raised from {usual:g}, above which {_percent(exceed(usual))} are alike; {shares}"


def _why_sinks(search: SinkSearch | None, known: Sequence[int]) -> str:
    own = f"the model's own stay ({', '.join(map(str, known))})" if known else "none are masked"
    if search is None:
        return f"not looked for, since the videos have different grids; {own}"
    if not search.decides:
        return f"{search.num_videos} videos cannot tell a sink from chance; {own}"
    rule = (
        f"among the {search.top} highest of nearly every frame in {search.least_videos} of {search.num_videos} videos"
    )
    if not search.sinks:
        near = search.nearest
        most = f"the most frequent, {near.position}, is there in {_percent(near.frames)} of the frames"
        return f"no position is {rule}; {most}; {own}"
    found = f"each is {rule}"
    if not known:
        return found
    new = [sink.position for sink in search.sinks if sink.position not in known]
    lost = [position for position in known if position not in [sink.position for sink in search.sinks]]
    return f"{found}; beyond the model's own: {new or 'none'}; of these not found: {lost or 'none'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
