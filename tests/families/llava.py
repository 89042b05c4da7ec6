"""The LLaVA families: frames of 112 x 112 pixels, 4 x 4 tokens each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tango.models import adapter_class
from tests import tiny
from tests.families import Family, Inputs, Picture, Row, Video


def family(name: str, **settings: Any) -> Family:
    def picture(seed: int) -> torch.Tensor:
        """One tile for the whole image and two for its halves."""
        return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(seed))

    def inputs(*rows: Row) -> Inputs:
        model, encode = getattr(tiny, name)(), tiny.tokenizer()
        config, adapter = model.config, adapter_class(model.config)
        media = [part for row in rows for part in row if not isinstance(part, str)]
        pixels = [picture(part.seed) for part in media if isinstance(part, Picture)]
        clips = [tiny.clip(part.seed, part.frames) for part in media if isinstance(part, Video)]
        extra: Inputs = {}
        if pixels:
            extra = {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor([[100, 224]] * len(pixels))}
            with torch.no_grad():
                tiles = model.model.get_image_features(**extra, return_dict=True).pooler_output[0]
        ids: list[list[int]] = []
        for row in rows:
            ids.append([])
            for part in row:
                if isinstance(part, str):
                    ids[-1] += encode(part)["input_ids"]
                elif isinstance(part, Picture):
                    ids[-1] += [config.image_token_id] * len(tiles)
                else:
                    ids[-1] += [config.video_token_id] * adapter.num_video_tokens(config, part.frames)
        same = len({len(clip) for clip in clips}) == 1
        times = [[1.5 * i for i in range(len(clip))] for clip in clips]
        videos = {"pixel_values_videos": torch.stack(clips) if same else clips, "video_timestamps_s": times}
        return {**tiny.batch(*ids), **extra, **(videos if clips else {})}

    return Family(
        name=name,
        model=partial(getattr(tiny, name), layers=4),
        inputs=inputs,
        tokens_per_frame=16,
        unequal=False,  # stock takes videos as one tensor
        stock_wrong={"several beams": "<5.20"},  # each video of a row goes to other beams than its row
        **settings,
    )


FAMILIES = (
    family("llava_onevision"),
    family("llava_video", stock_is_right=False),  # stock pools otherwise and knows no newlines of rows
    family("llava_next_video"),
)
VARIANTS = (family("llava_onevision_dinov2"),)  # another tower and another decoder
