"""Shortens a prompt: drops the placeholders of pruned tokens, closes the gaps, and pads rows on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tango.annotations import Bool, Float, Int
from tango.ops.device import to_device


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortPrompt:
    """A batch of shortened prompts. S is the longest row; `kept` holds each column's position in the source prompt."""

    input_ids: Int[Tensor, "B S"]
    text_ids: Int[Tensor, "B S"]  # with pads in place of the placeholders of videos and images
    attention_mask: Int[Tensor, "B S"]
    inputs_embeds: Float[Tensor, "B S D"]
    position_ids: Int[Tensor, "B S"] | Int[Tensor, "axes B S"]  # one row, or text positions and the family's own
    retains_positions: bool  # False: positions are contiguous, as stock `generate` counts them by itself
    is_video: Bool[Tensor, "B S"]  # and images that are pruned like videos
    kept: Int[Tensor, "B S"]
    lengths: tuple[int, ...]  # of the rows, without padding
    source_length: int  # L

    @property
    def is_padded(self) -> bool:
        """Whether any row is shorter than the others."""
        return min(self.lengths) < max(self.lengths)

    def gather_labels(self, labels: Int[Tensor, "B L"], *, ignore: int = -100) -> Int[Tensor, "B S"]:
        """Shorten labels like the prompt.

        Nothing precedes a row's first token, so its label is ignored: after padding on the left it would be predicted
        from padding.
        """
        if labels.shape != (len(self.kept), self.source_length):
            expected = (len(self.kept), self.source_length)
            raise ValueError(f"labels must have the shape of input_ids, {expected}, got {tuple(labels.shape)}")
        predictable = self.attention_mask.cumsum(dim=1) > 1
        return labels.to(self.kept.device).gather(1, self.kept).masked_fill(~predictable, ignore)

    def spread(self, rows: Float[Tensor, "B S vocabulary"]) -> Float[Tensor, "B L vocabulary"]:
        """Spread rows of this prompt, such as logits, to the length of the source prompt.

        A dropped column gets the row of the last kept column before it, which predicts the token that follows.
        """
        S = self.attention_mask.shape[1]
        keep_mask = torch.zeros(len(self.kept), self.source_length, dtype=torch.long, device=self.kept.device)
        keep_mask.scatter_(1, self.kept, self.attention_mask)
        columns = (keep_mask.cumsum(dim=1) - keep_mask.sum(dim=1, keepdim=True) + S - 1).clamp_min(0)
        return rows.gather(1, columns.to(rows.device)[..., None].expand(-1, -1, rows.shape[-1]))


def shorten(
    input_ids: Int[Tensor, "B L"],
    attention_mask: Int[Tensor, "B L"] | None,
    embed: Callable[[Tensor], Tensor],
    *,
    video: Bool[Tensor, "B L"],
    keep_masks: Sequence[Bool[Tensor, "placeholders"]],
    kept_counts: Sequence[int],
    video_features: Float[Tensor, "kept D"],
    images: tuple[Tensor, Tensor] | None,
    positions: Int[Tensor, "B L"] | Int[Tensor, "axes B L"] | None,
    pad_token_id: int,
) -> ShortPrompt:
    """Drop the video placeholders that `keep_masks` drop, and embed the rest of the prompt.

    Padding is dropped, too, and put anew on the left. Ids, masks and positions are on the host, features and keep masks
    on the device. Only the device knows which placeholders are kept, but the host knows how many, so nothing is read.

    Args:
        video: mask of the video placeholders.
        keep_masks: of every video, which of its placeholders are kept; `kept_counts` says how many are.
        video_features: embeddings of the kept placeholders of all videos, in order.
        images: mask (B, L) of the image placeholders, on the host, and their embeddings.
        positions: those of the full prompt. One row replaces the contiguous positions of the short prompt; several
            (such as M-RoPE's three) follow the contiguous positions as further rows. None: contiguous alone.
    Raises:
        ValueError: a prompt has more or fewer placeholders than there are features.
    """
    device = video_features.device
    attended = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool() & ~video
    lengths = attended.sum(dim=1) + _kept_per_row(video.sum(dim=1).tolist(), list(map(len, keep_masks)), kept_counts)
    S = int(lengths.max())
    mask = (torch.arange(S) >= S - lengths[:, None]).long()
    image = torch.zeros_like(video) if images is None else images[0]
    check_count("image", int((image & attended).sum()), 0 if images is None else len(images[1]))
    on_device = [torch.stack([input_ids, attended, video, image]), mask, (mask.cumsum(dim=1) - 1).clamp_min(0)]
    (ids, attended, video, image), mask, counted = (to_device(x, device) for x in on_device)
    attended, video, image, is_text = attended.bool(), video.bool(), image.bool(), mask.bool()
    keep = attended.masked_scatter(video, torch.cat(list(keep_masks)))
    kept = keep.byte().sort(dim=1, stable=True).indices[:, -S:]  # along L: moves kept columns to the right, in order
    ids = ids.gather(1, kept).masked_fill(mask == 0, pad_token_id)
    is_video, is_image = (x.gather(1, kept) & is_text for x in (video, image))
    text_ids = ids.masked_fill(is_video | is_image, pad_token_id)
    embeds = _put(video_features, is_video, embed(text_ids))  # the placeholder's own embedding is never used
    if images is not None:
        embeds = _put(images[1], is_image, embeds)
    if positions is not None:
        counted = _kept_positions(to_device(positions, device), kept, counted, mask)
    return ShortPrompt(
        input_ids=ids,
        text_ids=text_ids,
        attention_mask=mask,
        inputs_embeds=embeds,
        position_ids=counted,
        retains_positions=positions is not None,
        is_video=is_video,
        kept=kept,
        lengths=tuple(lengths.tolist()),
        source_length=input_ids.shape[1],
    )


def attended_positions(input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"] | None) -> Int[Tensor, "B L"]:
    """Positions that count the tokens of a prompt from 0, without its padding."""
    attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    return attended.cumsum(dim=1) - 1  # along L; positions of padding are never used


def _put(features: Tensor, where: Tensor, embeds: Tensor) -> Tensor:
    return embeds.masked_scatter(where[..., None], features.to(embeds))


def _kept_positions(positions: Tensor, kept: Tensor, counted: Tensor, mask: Tensor) -> Tensor:
    """Positions (B, L) or (axes, B, L) of the columns that are kept, as `shorten` describes them."""
    if positions.dim() == 2:
        return positions.gather(1, kept).masked_fill(mask == 0, 0)
    return torch.cat([counted[None], positions.gather(2, kept.expand(len(positions), -1, -1))])


def _kept_per_row(in_rows: Sequence[int], placeholders: Sequence[int], kept: Sequence[int]) -> Int[Tensor, "B"]:
    """How many placeholders each row keeps, given their number in each row, and of each video before and after."""
    check_count("video", sum(in_rows), sum(placeholders))
    ends = np.cumsum([0, *placeholders]).tolist()
    borders = np.cumsum([0, *in_rows]).tolist()  # along the flattened batch
    if not set(borders) <= set(ends):
        raise ValueError(
            f"the prompts have {list(in_rows)} video placeholders, but the videos, in order, make {list(placeholders)} "
            "tokens; are prompts and videos in the same order?"
        )
    before = dict(zip(ends, np.cumsum([0, *kept]).tolist(), strict=True))
    return torch.tensor([before[b] - before[a] for a, b in pairwise(borders)])


def check_count(kind: str, in_prompt: int, in_features: int) -> None:
    """Raise ValueError unless a prompt has as many placeholders as there are features for them."""
    if in_prompt != in_features:
        raise ValueError(
            f"the prompt has {in_prompt} {kind} placeholders, but the {kind} inputs make {in_features} tokens; "
            f"was the prompt built by this model's processor for these {kind}s?"
        )
