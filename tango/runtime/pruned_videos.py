"""The videos of a batch between pruner and prompt: what is left of them, whatever is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tango.annotations import Bool, Float
from tango.containers import VisualTokens
from tango.methods import Pruner
from tango.models.base import Adapter
from tango.profiling import StageTimer
from tango.runtime.stats import VideoStats


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedVideos:
    """All that prompts need of their videos, in the order of the placeholders."""

    features: Float[Tensor, "kept D"]  # embeddings of all kept placeholders
    keep_masks: list[Bool[Tensor, "placeholders"]]  # of each video
    kept_counts: list[int]  # of each video, how many placeholders are kept
    deeper: list[list[Float[Tensor, "K D"]]]  # of each video, for each layer of the LLM that is handed features
    sizes: tuple[VideoStats, ...]
    finite: Bool[Tensor, "videos"]  # no feature is NaN or infinity


def prune_videos(adapter: Adapter, pruner: Pruner, inputs: Mapping[str, Any], timer: StageTimer) -> PrunedVideos:
    """Encode and prune all videos of a batch; `inputs` are as for `Adapter.encode_videos`."""
    encoded = adapter.encode_videos(inputs, pruner.wants, timer)
    with timer.stage("prune"):
        pruned = [pruner(video) for video in encoded.videos]
    with timer.stage("splice"):
        laid_out = [adapter.lay_out(*pair) for pair in zip(encoded.videos, pruned, strict=True)]
        deeper = encoded.extras or [[]] * len(pruned)
        deeper = [[layer[p.indices] for layer in own] for own, p in zip(deeper, pruned, strict=True)]
    return PrunedVideos(
        features=torch.cat([features for features, _ in laid_out]),
        kept_counts=[len(features) for features, _ in laid_out],
        keep_masks=[keep_mask for _, keep_mask in laid_out],
        deeper=deeper,
        sizes=tuple(_size(video, len(p.indices)) for video, p in zip(encoded.videos, pruned, strict=True)),
        finite=torch.stack([_finite([p.features, *own]) for p, own in zip(pruned, deeper, strict=True)]),
    )


def _size(video: VisualTokens, kept: int) -> VideoStats:
    T, N, _ = video.features.shape
    return VideoStats(frames=T, grid=video.grid, tokens_before=T * N, tokens_after=kept)


def _finite(features: list[Tensor]) -> Tensor:
    """Whether all features that the LLM will see of a video are finite; on the device."""
    return torch.stack([torch.stack(x.detach().aminmax()) for x in features]).isfinite().all()
