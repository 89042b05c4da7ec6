"""The videos of a batch between pruner and prompt: what is left of them, whatever is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tango.annotations import Bool, Float
from tango.methods import Pruner
from tango.models.base import Adapter
from tango.models.reuse import refuse_unequal
from tango.ops.checks import refuse_unless
from tango.profiling import StageTimer
from tango.runtime.merged import prune_encoded, sound
from tango.runtime.stats import VideoStats, video_stats


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedVideos:
    """All that prompts need of their videos, in the order of the placeholders."""

    features: Float[Tensor, "kept D"]  # embeddings of all kept placeholders
    keep_masks: list[Bool[Tensor, "placeholders"]]  # of each video
    kept_counts: list[int]  # of each video, how many placeholders are kept
    deeper: list[list[Float[Tensor, "K D"]]]  # of each video, for each layer of the LLM that is handed features
    sizes: tuple[VideoStats, ...]
    sound: Bool[Tensor, "flags"]  # see `refuse_unsound`

    def refuse_unsound(self) -> None:
        """Read from the device whether the videos' features are finite, and equal frames equal.

        Raises:
            NotFiniteError: a video's features hold NaN or infinity.
            ValueError: frames that were encoded once had different pixels.
        """
        flags = self.sound.tolist()
        refuse_unequal(len(flags) == len(self.sizes) or flags.pop())
        for video, flag in enumerate(flags):
            refuse_unless(flag, f"features of video {video}")


def prune_videos(adapter: Adapter, pruner: Pruner, inputs: Mapping[str, Any], timer: StageTimer) -> PrunedVideos:
    """Encode and prune all videos of a batch; `inputs` are as for `Adapter.encode_videos`."""
    encoded = adapter.encode_videos(inputs, pruner.wants, timer)
    with timer.stage("prune"):
        encoded, pruned = prune_encoded(encoded, pruner)
    with timer.stage("splice"):
        laid_out = [adapter.lay_out(*pair) for pair in zip(encoded.videos, pruned, strict=True)]
        deeper = encoded.extras or [[]] * len(pruned)
        deeper = [[layer[p.indices] for layer in own] for own, p in zip(deeper, pruned, strict=True)]
    return PrunedVideos(
        features=torch.cat([features for features, _ in laid_out]),
        kept_counts=[len(features) for features, _ in laid_out],
        keep_masks=[keep_mask for _, keep_mask in laid_out],
        deeper=deeper,
        sizes=video_stats(encoded, pruned),
        sound=sound(encoded, pruned),
    )


def places_of(videos: PrunedVideos) -> tuple[Tensor, Tensor]:
    """Frame of every kept placeholder, and its position in the frame.

    Both are counted on from video to video. A newline after the last frame counts as a frame of its own.
    """
    frames, cells, first_frame, first_cell = [], [], 0, 0
    for size, keep_mask in zip(videos.sizes, videos.keep_masks, strict=True):
        num_frames, per_frame = size.frames, len(keep_mask) // size.frames
        index = keep_mask.nonzero()[:, 0]
        frames.append(index // per_frame + first_frame)
        cells.append(index % per_frame + first_cell)
        first_frame, first_cell = first_frame + num_frames + 1, first_cell + per_frame
    return torch.cat(frames), torch.cat(cells)
