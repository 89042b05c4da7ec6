"""LLaVA-Video: LLaVA-OneVision's class with average pooling and a newline after every row of every frame.

A model of this family is a `LlavaOnevisionForConditionalGeneration` whose config says
`mm_newline_position = "grid"` and `mm_spatial_pool_mode = "average"` (`tango.load` and `tango convert` write both).
Stock `generate` knows neither field, so all videos go through Tango, pruned or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tango.errors import UnsupportedModelError
from tango.models.about import About
from tango.models.base import Newlines, register_adapter
from tango.models.fixed_grid import FixedGridAdapter, PositionRule
from tango.models.llava_onevision import LlavaOnevisionAdapter
from tango.models.processors.llava import Processor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@register_adapter("llava_video")
class LlavaVideoAdapter(LlavaOnevisionAdapter):
    """LLaVA-Video on the stock LLaVA-OneVision class.

    A row of a frame keeps its newline, which ends the row, if any token of the row is kept, or with `keep_newlines`. At
    a retention ratio of 10 %, about 15 % of the video's placeholders are kept; `PruningStats` reports both.

    Source: arXiv:2410.02713; the rule for pruned rows comes from the release of arXiv:2604.09547.
    """

    title: ClassVar[str] = "LLaVA-Video"
    about: ClassVar[About] = About(
        checkpoints=("lmms-lab/LLaVA-Video-*-Qwen2",),
        tokens="13 x 13, and 13 newlines",
        notes="a row keeps its newline while one of its tokens is kept; stock code does not know these newlines",
    )
    default_num_frames: ClassVar[int] = 64
    sink_positions: ClassVar[tuple[int, ...]] = (26, 157, 11)  # as released
    sink_grid: ClassVar[tuple[int, int] | None] = (13, 13)
    newlines: ClassVar[Newlines] = "row"
    merges_in_tower: ClassVar[bool] = False  # the only published method's code for these newlines drops tokens
    stock_is_right: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, *, saliency: str = "p-attn", positions: PositionRule = "contiguous"):
        super().__init__(model, saliency=saliency, positions=positions)
        mode = getattr(model.config, "mm_spatial_pool_mode", None)
        if mode != "average":
            raise UnsupportedModelError(
                f"newlines in a grid go with mm_spatial_pool_mode 'average' (LLaVA-Video), got {mode!r}"
            )

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        """Tokens per side of a frame; the last row and column of an odd patch grid are discarded."""
        return FixedGridAdapter.side(config)

    def pool(self, x: Tensor) -> Tensor:
        return FixedGridAdapter.pool(self, x)

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Processor:
        """Make LLaVA-OneVision's processor, and let it tell the model how long the video is."""
        processor = super().make_processor(folder, config, tokenizer)
        processor.time_instruction = "frames"
        return processor
