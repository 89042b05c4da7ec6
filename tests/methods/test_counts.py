"""How many of 32 x 196 tokens each method keeps, of a video in which nothing stays the same.

To add a method, add a line. Where the number depends on the video, it is the least and the most that the rule allows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tango.containers import VisualTokens
from tango.methods import build_pruner

T, N, DIM = 32, 196, 96
RATIOS = (0.10, 0.15, 0.20)
EXACT = (627, 941, 1254)
Count = int | tuple[int, int]
# Method, options, and tokens kept at each of the ratios.
TABLE: list[tuple[str, dict[str, Any], tuple[Count, Count, Count]]] = [
    ("uniform", {}, EXACT),
    ("random", {}, EXACT),
    ("downsample", {}, EXACT),
    ("fewer-frames", {}, (588, 980, 1176)),  # 3, 5 and 6 whole frames
    ("fewer-frames", {"exact_budget": True}, EXACT),
    ("evs", {}, (627, 940, 1254)),  # rounded down
    ("evs", {"exact_budget": True}, EXACT),
    ("v-cast", {}, EXACT),
    ("divprune", {}, EXACT),
    ("dycoke", {}, EXACT),
    ("prunevid", {}, EXACT),
    ("tango", {}, (640, 960, 1280)),
    ("holitom", {}, (640, 960, 1280)),
    ("earlytom", {}, (640, 960, 1280)),
    ("cdpruner", {}, (640, 928, 1248)),  # 20, 29 and 39 of every frame
    ("cdpruner", {"exact_budget": True}, EXACT),
    ("flashvid", {}, ((640, 672), (960, 992), (1280, 1312))),  # up to one more in every frame
    ("flashvid", {"exact_budget": True}, EXACT),
    ("visionzip", {}, (640, 960, 1280)),
    ("visionzip", {"rounding": "down"}, (576, 896, 1216)),  # 9 contextual tokens beside 9, 19 and 29
    ("fastvid", {}, (608, 928, 1248)),  # a segment of every frame
    ("vidcom2", {}, ((627 - 16, 627 + 16), (941 - 16, 941 + 16), (1254 - 16, 1254 + 16))),
]


@cache
def video() -> VisualTokens:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return VisualTokens(
        features=draw(T, N, DIM),
        grid=(14, 14),
        timestamps_s=torch.arange(float(T)),
        saliency=draw(T, N).exp(),
        frame_embeds=draw(T, DIM),
        keys=draw(T, N, 8),
        text=draw(5, DIM),
    )


@pytest.mark.parametrize(("method", "options", "counts"), TABLE, ids=lambda value: str(value) if value else "defaults")
def test_counts_at_32_frames_of_196(method: str, options: dict[str, Any], counts: tuple[Count, ...]) -> None:
    for ratio, count in zip(RATIOS, counts, strict=True):
        least, most = (count, count) if isinstance(count, int) else count
        kept = len(build_pruner(method, retention_ratio=ratio, **options)(video()).indices)
        assert least <= kept <= most, ratio
