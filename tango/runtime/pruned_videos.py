"""The videos of a batch between pruner and prompt, and images that are pruned: what is left, whatever is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tango.annotations import Bool, Float
from tango.errors import UnsupportedModelError
from tango.methods import Pruner
from tango.models.base import Adapter, EncodedVideos, families_that_prune_images
from tango.models.reuse import refuse_unequal
from tango.models.splice import check_count
from tango.ops.checks import refuse_unless
from tango.profiling import StageTimer
from tango.runtime.merged import prune_encoded, sound
from tango.runtime.stats import VideoStats, video_stats

Kind = Literal["video", "image"]
X = TypeVar("X")


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedVideos:
    """All that prompts need of their videos, in the order of the placeholders."""

    features: Float[Tensor, "kept D"]  # embeddings of all kept placeholders
    keep_masks: list[Bool[Tensor, "placeholders"]]  # of each video
    kept_counts: list[int]  # of each video, how many placeholders are kept
    deeper: list[list[Float[Tensor, "K D"]]]  # of each video, for each layer of the LLM that is handed features
    sizes: tuple[VideoStats, ...]
    sound: Bool[Tensor, "flags"]  # see `refuse_unsound`
    kinds: tuple[Kind, ...]  # of each

    def refuse_unsound(self) -> None:
        """Read from the device whether the videos' features are finite, and equal frames equal.

        Raises:
            NotFiniteError: a video's features hold NaN or infinity.
            ValueError: frames that were encoded once had different pixels.
        """
        flags = self.sound.tolist()
        refuse_unequal(len(flags) == len(self.sizes) or flags.pop())
        for i, (kind, flag) in enumerate(zip(self.kinds, flags, strict=True)):
            refuse_unless(flag, f"features of {kind} {self.kinds[:i].count(kind)}")

    def to(self, device: torch.device) -> PrunedVideos:
        """The same on another device; itself if it is there already."""
        if self.features.device == device:
            return self
        return replace(
            self,
            features=self.features.to(device),
            keep_masks=[keep_mask.to(device) for keep_mask in self.keep_masks],
            deeper=[[layer.to(device) for layer in own] for own in self.deeper],
        )

    def sizes_of(self, kind: Kind) -> tuple[VideoStats, ...]:
        """The numbers of all videos, or of all images."""
        return tuple(size for own, size in zip(self.kinds, self.sizes, strict=True) if own == kind)


def check_images(adapter: Adapter) -> None:
    """Refuse to prune images where that is not exact.

    Raises:
        UnsupportedModelError: the family lays out images in another way than videos.
    """
    if not adapter.prunes_images:
        raise UnsupportedModelError(
            f"images=True prunes images that are laid out as videos of one frame, which the {adapter.title} adapter "
            f"does not know; it works with {', '.join(families_that_prune_images())}"
        )


def prune_videos(adapter: Adapter, pruner: Pruner, inputs: Mapping[str, Any], timer: StageTimer) -> PrunedVideos:
    """Encode and prune all videos of a batch; `inputs` are as for `Adapter.encode_videos`."""
    return _prune(adapter, pruner, adapter.encode_videos(inputs, pruner.wants, timer), timer, "video")


def prune_media(
    adapter: Adapter, pruner: Pruner, inputs: Mapping[str, Any], timer: StageTimer, known: PrunedVideos | None
) -> list[PrunedVideos]:
    """The videos of a batch and, if they are pruned, its images; `known` are videos that were pruned before."""
    parts = [] if known is None else [known]
    has_images = adapter.images and inputs.get("pixel_values") is not None
    if known is None and (inputs.get(adapter.video_input) is not None or not has_images):
        parts.append(prune_videos(adapter, pruner, inputs, timer))
    if has_images:
        encoded = adapter.encode_images_as_videos(inputs, pruner.wants, timer)
        parts.append(_prune(adapter, pruner, encoded, timer, "image"))
    return parts


def _prune(adapter: Adapter, pruner: Pruner, encoded: EncodedVideos, timer: StageTimer, kind: Kind) -> PrunedVideos:
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
        kinds=(kind,) * len(pruned),
    )


def in_order(parts: Sequence[PrunedVideos], placeholders: Mapping[Kind, Bool[Tensor, "B L"]]) -> PrunedVideos:
    """Videos and images together, in the order of the prompts.

    Args:
        parts: those of each kind.
        placeholders: the mask of each kind's placeholders, on the host.
    Raises:
        ValueError: a prompt has more or fewer placeholders than there are tokens, or an image within a video.
    """
    spans: list[tuple[int, int]] = []  # of each, its first and last placeholder, counted over all
    rank = torch.stack(list(placeholders.values())).any(0).flatten().cumsum(0) - 1
    masks = {part.kinds[0]: list(map(len, part.keep_masks)) for part in parts}
    for kind, where in placeholders.items():
        places, lengths = rank[where.flatten()].tolist(), masks.get(kind, [])
        check_count(kind, len(places), sum(lengths))
        spans += [(places[a], places[b - 1]) for a, b in pairwise(accumulate(lengths, initial=0))]
    order = sorted(range(len(spans)), key=spans.__getitem__)
    if any(spans[i][1] >= spans[j][0] for i, j in pairwise(order)):
        raise ValueError(
            "an image stands among the placeholders of one video; prompts must have them one after another"
        )

    def ordered(each: Iterable[Iterable[X]]) -> list[X]:
        flat = list(chain.from_iterable(each))
        return [flat[i] for i in order]

    flags = [part.sound.split([len(part.sizes), len(part.sound) - len(part.sizes)]) for part in parts]
    return PrunedVideos(
        features=torch.cat(ordered(part.features.split(part.kept_counts) for part in parts)),
        kept_counts=ordered(part.kept_counts for part in parts),
        keep_masks=ordered(part.keep_masks for part in parts),
        deeper=ordered(part.deeper for part in parts),
        sizes=tuple(ordered(part.sizes for part in parts)),
        sound=torch.cat([torch.stack(ordered(own for own, _ in flags)), *(rest for _, rest in flags)]),
        kinds=tuple(ordered(part.kinds for part in parts)),
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
