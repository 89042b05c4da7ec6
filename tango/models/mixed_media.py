"""The base of fixed-grid families whose images and videos share one input and one placeholder: SmolVLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tango.containers import Signal
from tango.errors import PromptError, UnsupportedModelError
from tango.models.base import EncodedImages
from tango.models.calls import Inputs
from tango.models.fixed_grid import FixedGridAdapter
from tango.models.frame_batches import frame_batches
from tango.models.media import MEDIA, Media, media_of
from tango.models.splice import check_count
from tango.profiling import StageTimer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class MixedMediaAdapter(FixedGridAdapter):
    """Tells videos from images by the input `media`, which Tango's processors make; images are not pruned.

    A tile of an image has as many placeholders as a frame. Inputs of transformers' own processors lack `media`: with
    times (`video_timestamps_s`) they count as videos, one for each list of times; without, they are refused.

    Raises:
        PromptError: the inputs do not say what their pixels show, or `media` and pixels do not match.

    Example:
        >>> from tango.models.smolvlm import SmolVlmAdapter
        >>> issubclass(SmolVlmAdapter, MixedMediaAdapter), SmolVlmAdapter.video_input
        (True, 'pixel_values')
    """

    video_input: ClassVar[str] = "pixel_values"
    own_inputs: ClassVar[frozenset[str]] = FixedGridAdapter.own_inputs | {MEDIA}

    @classmethod
    def placeholder_id(cls, config: PretrainedConfig) -> int:
        return config.image_token_id

    def media_pixels(self, inputs: Inputs, media: Media) -> list[Tensor]:
        """The frames or tiles (count, 3, h, w) of every medium, in order.

        Here pixels have a row for each prompt, and shorter rows are filled up at their end.
        """
        rows, side = list(inputs[self.video_input]), self.model.config.vision_config.image_size
        lengths = [sum(count for _, count in row) for row in media]
        expected = [(length, 3, side, side) for length in lengths]
        shapes = [tuple(row[:length].shape) for row, length in zip(rows, lengths, strict=False)]
        if shapes != expected or len(rows) != len(media):
            raise PromptError(
                f"{self.video_input} must have rows that begin with {expected}, got {shapes} of {len(rows)}"
            )
        mask = inputs.get("pixel_attention_mask")
        if mask is not None and not all(bool(own[:length].all()) for own, length in zip(mask, lengths, strict=True)):
            raise UnsupportedModelError("frames must fill their grid of patches, but pixel_attention_mask hides some")
        cuts = zip(rows, lengths, media, strict=True)
        return [own for row, length, parts in cuts for own in row[:length].split([count for _, count in parts])]

    def holds_video(self, inputs: Inputs) -> bool | None:
        if inputs.get(self.video_input) is None:
            return False
        media = media_of(inputs)
        return None if media is None else any(kind != "image" for row in media for kind, _ in row)

    def _media(self, inputs: Inputs) -> Media:
        media = media_of(inputs)
        if media is None or any(kind not in ("image", "video") or count < 1 for row in media for kind, count in row):
            raise PromptError(
                f"{self.video_input} may hold images or videos: media must say which, for each prompt a list of "
                f"('video', frames) and ('image', tiles), got {media}; the processor of tango.load says it (with "
                "video_timestamps=True)"
            )
        return media

    def _pixels(self, inputs: Inputs, wanted: str) -> list[Tensor]:
        """Those of all media of a kind."""
        media = self._media(inputs)
        kinds = [kind for row in media for kind, _ in row]
        if wanted not in kinds:
            return []
        return [own for own, kind in zip(self.media_pixels(inputs, media), kinds, strict=True) if kind == wanted]

    def marks(self, input_ids: Tensor, video: Tensor) -> set[int]:
        """Those right before and after the placeholders of a frame, along L."""
        ids, begin, end = input_ids, video[:, 1:] & ~video[:, :-1], video[:, :-1] & ~video[:, 1:]
        return {*ids[:, :-1][begin].tolist(), *ids[:, 1:][end].tolist()}

    def videos(self, inputs: Inputs) -> list[Tensor]:
        return self._pixels(inputs, "video")

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        """Encode tiles as frames are: the stock function reads from the device which rows are filled up."""
        tiles = [tile for own in self._pixels(inputs, "image") for tile in own]
        if not tiles:
            return None
        width, timer = self.model.config.vision_config.hidden_size, StageTimer(self.device)
        cuts = list(frame_batches([self.patches**2] * len(tiles), width, self.model.dtype, self.device))
        parts = [self._encode_frames(tiles[cut], cuts[0].stop, Signal.NONE, timer)["features"] for cut in cuts]
        return EncodedImages(token_id=self.video_token_id, features=torch.cat(parts).flatten(0, 1))

    def placeholders(self, input_ids: Tensor, inputs: Inputs, images: EncodedImages | None) -> tuple[Tensor, Tensor]:
        del images
        where, N = input_ids == self.video_token_id, self.tokens_per_step(self.model.config)
        media = [medium for row in self._media(inputs) for medium in row]
        counts = torch.tensor([N * count for _, count in media])
        check_count("visual", int(where.sum()), int(counts.sum()))
        of_video = torch.tensor([kind == "video" for kind, _ in media]).repeat_interleave(counts)
        video = torch.zeros_like(where).masked_scatter(where, of_video)  # in the order of the prompts, row by row
        return video, where & ~video
