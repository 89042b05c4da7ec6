"""The Qwen-VL families: two frames a step, and 2 x 3 tokens a step."""

from __future__ import annotations

from functools import partial

import torch

from tests import tiny, tiny_qwen
from tests.families import Family, Inputs, Picture, Row

STILL = (1, 4, 8)


def inputs(family: str, *rows: Row) -> Inputs:
    """Videos take 2 x 3 tokens for two frames, images 2 x 4."""

    def grid(part: object) -> tiny_qwen.Grid:
        return STILL if isinstance(part, Picture) else (-(-part.frames // 2), 4, 6)

    settings = tiny_qwen.config(family)
    shaped = [tuple(part if isinstance(part, str) else grid(part) for part in row) for row in rows]
    given = tiny.batch(*(tiny_qwen.prompt(family, *row) for row in shaped))
    ids = given["input_ids"]
    given["mm_token_type_ids"] = (ids == settings.image_token_id).int() + 2 * (ids == settings.video_token_id).int()
    media = [part for row in rows for part in row if not isinstance(part, str)]
    for pixels, grids, kind in (
        ("pixel_values", "image_grid_thw", Picture),
        ("pixel_values_videos", "video_grid_thw", None),
    ):
        own = [part for part in media if isinstance(part, Picture) == (kind is Picture)]
        if own:
            given[pixels] = torch.cat([tiny_qwen.pixels(family, grid(part), part.seed) for part in own])
            given[grids] = torch.tensor([grid(part) for part in own])
    steps = [grid(part)[0] for part in media if not isinstance(part, Picture)]
    if steps:
        given["video_timestamps_s"] = [[tiny_qwen.SECONDS * i / 2 for i in range(2 * n)] for n in steps]
        if family == "qwen2_5_vl":
            given["second_per_grid_ts"] = torch.full((len(steps),), tiny_qwen.SECONDS)
    return given


def family(name: str) -> Family:
    # "stock": its positions are not what these models were trained with, see `tango.models.mrope`.
    return Family(
        name=name,
        model=partial(tiny_qwen.model, name),
        inputs=partial(inputs, name),
        tokens_per_frame=6,
        frames_per_step=2,
        options={"positions": "stock"},
        layer_pruners="qwen3_5" not in name,
        keeps_prefix="qwen3_5" not in name,  # the states of linear attention after a video are not kept
        stock_wrong={"lookup": ">=0"} if "qwen3_5" in name else {},  # stock cannot take back what a state has seen
    )


FAMILIES = tuple(family(name) for name in tiny_qwen.ALL)
