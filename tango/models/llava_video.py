"""LLaVA-Video: LLaVA-OneVision's class with average pooling and a newline after every row of every frame.

A model of this family is a `LlavaOnevisionForConditionalGeneration` whose config says
`mm_newline_position = "grid"` and `mm_spatial_pool_mode = "average"` (`tango.load` and `tango convert` write both).
Stock `generate` knows neither, so all its videos go through Tango, pruned or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tango.containers import PrunedTokens, VisualTokens
from tango.errors import UnsupportedModelError
from tango.models.base import register_adapter
from tango.models.llava_onevision import LlavaOnevisionAdapter, PositionRule
from tango.models.processor import Processor


@register_adapter("llava_video")
class LlavaVideoAdapter(LlavaOnevisionAdapter):
    """LLaVA-Video on the stock LLaVA-OneVision class.

    Newlines are outside every ratio: a row of a frame keeps its newline, behind the row, while any of its tokens is
    kept. At 10 % that makes about 15 % of the prompt's video part; `PruningStats` reports both.

    Source: arXiv:2410.02713; the rule for pruned rows is that of the release of arXiv:2604.09547.
    """

    title: ClassVar[str] = "LLaVA-Video"
    default_num_frames: ClassVar[int] = 64
    sink_positions: ClassVar[tuple[int, ...]] = (26, 157, 11)  # as released
    sink_grid: ClassVar[tuple[int, int]] = (13, 13)
    stock_is_right: ClassVar[bool] = False

    def __init__(self, model: Any, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency, positions=positions)
        mode = getattr(model.config, "mm_spatial_pool_mode", None)
        if mode != "average":
            raise UnsupportedModelError(
                f"newlines in a grid go with mm_spatial_pool_mode 'average' (LLaVA-Video), got {mode!r}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of a frame's tokens after pooling; the last row and column of an odd patch grid are discarded."""
        return self.patches // 2, self.patches // 2

    def pool(self, x: Tensor) -> Tensor:
        """Shrink the patch grid of every frame, (T, patches^2, C) -> (T, N, C), as the model was trained."""
        x = x.unflatten(1, (self.patches, self.patches)).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1, 2)

    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        (T, N, _), (H, W), K = tokens.features.shape, tokens.grid, len(pruned.indices)
        # For each placeholder the row of `embeds` that stands there, -1 where the placeholder leaves.
        embeds = torch.cat([pruned.features, self.model.model.image_newline.to(pruned.features)[None]])
        source = torch.full((T * N,), -1, device=pruned.indices.device)
        source[pruned.indices] = torch.arange(K, device=source.device)
        source = source.view(T * H, W)
        newline = torch.where((source >= 0).any(dim=1, keepdim=True), K, -1)
        source = torch.cat([source, newline], dim=1).flatten()
        stays = source >= 0
        return embeds[source[stays]], stays

    @classmethod
    def num_video_tokens(cls, config: Any, num_frames: int) -> int:
        side = config.vision_config.image_size // config.vision_config.patch_size // 2
        return num_frames * side * (side + 1)

    @classmethod
    def make_processor(cls, folder: Path, config: Any, tokenizer: Any = None) -> Processor:
        """LLaVA-OneVision's processor, which also tells the model how long the video is."""
        processor = super().make_processor(folder, config, tokenizer)
        processor.time_instruction = "frames"
        return processor
