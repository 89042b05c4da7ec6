"""Prunes videos whose frames a tower method may have merged; ratio, numbers and prompt are those of all frames."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from tango.containers import ALL_SIGNALS, PrunedTokens, Signal, VisualTokens
from tango.methods import Pruner
from tango.models.base import EncodedVideos
from tango.models.merging import MergedFrames
from tango.ops.device import to_device


def prune_encoded(encoded: EncodedVideos, pruner: Pruner) -> tuple[EncodedVideos, list[PrunedTokens]]:
    """Prune every video.

    A video with merged frames is pruned as it is, at the ratio that leaves as many tokens as the pruner's would of all
    frames. Tokens of a merged frame count as those of the frame that it stands for; frames that are gone repeat it in
    the result, which no token of theirs enters.
    """
    if encoded.merged is None:
        videos = [_on_one_device(video) for video in encoded.videos]
        return replace(encoded, videos=videos), [pruner(video) for video in videos]
    pairs = [_prune(*own, pruner) for own in zip(encoded.videos, encoded.merged, strict=True)]
    return replace(encoded, videos=[video for video, _ in pairs]), [pruned for _, pruned in pairs]


def _on_one_device(video: VisualTokens) -> VisualTokens:
    """The video with its signals beside its features: tower, projector and LLM may lie on several devices."""
    device, names = video.features.device, (ALL_SIGNALS & ~Signal.TIMESTAMPS).fields
    signals = {name: getattr(video, name) for name in names}
    moved = {name: x.to(device) for name, x in signals.items() if x is not None and x.device != device}
    return replace(video, **moved) if moved else video


def _prune(video: VisualTokens, merged: MergedFrames, pruner: Pruner) -> tuple[VisualTokens, PrunedTokens]:
    left, N, _ = video.features.shape
    pruned = _at_ratio(pruner, min(1.0, pruner.retention_ratio * merged.num_frames / left))(video)
    sources = to_device(merged.sources, pruned.indices.device)
    indices = sources[pruned.indices // N] * N + pruned.indices % N
    rows = to_device(merged.rows, video.features.device)
    every = VisualTokens(
        features=video.features.index_select(0, rows),
        grid=video.grid,
        timestamps_s=video.timestamps_s.index_select(0, to_device(merged.rows, video.timestamps_s.device)),
    )
    return every, PrunedTokens(features=pruned.features, indices=indices)


def _at_ratio(pruner: Pruner, ratio: float) -> Pruner:
    """The same method at another ratio; options that follow from the ratio stay those of its own."""
    changed = copy.copy(pruner)  # with the tensors of a learned method
    for name, value in {
        **pruner.fixed_by_mean(pruner.retention_ratio, pruner.config()),
        "retention_ratio": ratio,
    }.items():
        object.__setattr__(changed, name, value)
    return changed


def sound(encoded: EncodedVideos, pruned: list[PrunedTokens]) -> Tensor:
    """For every video, whether all its features that the LLM will see are finite; on the device.

    Where equal frames were encoded once, one flag more: whether they were equal.
    """
    deeper = encoded.extras or [[]] * len(pruned)
    parts = [[tokens.features, *layers] for tokens, layers in zip(pruned, deeper, strict=True)]
    ranges = [torch.stack([torch.stack(x.detach().aminmax()) for x in part]) for part in parts]
    flags = torch.stack([x.isfinite().all() for x in ranges])
    if encoded.reuse is None:
        return flags
    return torch.cat([flags, to_device(encoded.reuse.equal, flags.device)[None]])
