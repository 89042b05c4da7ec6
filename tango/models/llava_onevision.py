"""LLaVA-OneVision: SigLIP tower, two-layer projector, bilinear pooling to half the grid, one newline per video."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tango.models.about import About
from tango.models.base import Newlines, register_adapter
from tango.models.checkpoint import load_tokenizer
from tango.models.fixed_grid import FixedGridAdapter
from tango.models.placement import device_of
from tango.models.processors import stock
from tango.models.processors.llava import Processor, chat_template
from tango.ops.saliency import PoolingQuery
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@register_adapter("llava_onevision")
class LlavaOnevisionAdapter(FixedGridAdapter):
    """Stock `LlavaOnevisionForConditionalGeneration`.

    Published models have SigLIP's tower. CLIP's and DINOv2's go with `vision_feature_select_strategy="default"`, which
    leaves out their CLS token: its attention is then "p-attn", and its state the frame embedding. No paper has measured
    these two on this family.
    """

    title: ClassVar[str] = "LLaVA-OneVision"
    model_class: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("llava-hf/llava-onevision-*", "lmms-lab/llava-onevision-qwen2-*-ov*"),
        tokens="14 x 14",
        tested="tango-mini, trained; random weights of the 7B's shape on an H200",
    )
    consumed: ClassVar[frozenset[str]] = frozenset(
        {
            "pixel_values", "pixel_values_videos", "image_sizes", "image_sizes_videos", "batch_num_images",
            "vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio", "video_timestamps_s",
            FIRST_EQUAL,
        }
    )  # fmt: skip
    default_num_frames: ClassVar[int] = 32
    pooling_query: ClassVar[PoolingQuery] = "head"
    newlines: ClassVar[Newlines] = "video"
    merges_in_tower: ClassVar[bool] = True
    image_options: ClassVar[tuple[str, ...]] = ("vision_aspect_ratio", "batch_num_images")
    # Positions in the pooled 14 x 14 grid that attract attention whatever the image (release; appendix B.3 names #28).
    sink_positions: ClassVar[tuple[int, ...]] = (28, 27, 41, 169, 11, 12)
    sink_grid: ClassVar[tuple[int, int] | None] = (14, 14)
    cls_towers: ClassVar[tuple[str, ...]] = ("clip_vision_model", "dinov2")  # with one token before the patches

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        return math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)

    @classmethod
    def pooling_query_of(cls, config: PretrainedConfig) -> PoolingQuery:
        return "cls" if config.vision_config.model_type in cls.cls_towers else cls.pooling_query

    @classmethod
    def make_processor(
        cls, folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Processor:
        """Make Tango's own processor, which needs no torchvision.

        Pixel statistics are always SigLIP's with its tower; with others, those that the checkpoint's files say.
        """
        statistics = stock.pixel_statistics(folder) if cls.pooling_query_of(config) == "cls" else None
        images = stock.image_settings(folder)
        return Processor(
            tokenizer or load_tokenizer(folder),
            image_size=config.vision_config.image_size,
            num_video_tokens=partial(cls.num_video_tokens, config),
            default_num_frames=cls.usual_num_frames(config),
            chat_template=chat_template(folder),
            statistics=statistics,
            make_stock=partial(stock.llava_onevision, config=config, images=images, statistics=statistics),
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Project and pool, (T, patches^2, P) -> (T, N, D).

        The projector's last layer and pooling are both linear, and the weights of pooling sum to 1. Pooling before that
        layer gives the same result up to rounding, for about half of the work. A layer with quantised weights may
        round its input, too, token by token, so that it comes first, as in the model.
        """
        projector = self.model.model.multi_modal_projector
        hidden = projector.act(projector.linear_1(hidden.to(device_of(projector))))
        last = projector.linear_2
        is_linear = type(last) is nn.Linear and type(last.weight) is nn.Parameter and last.weight.is_floating_point()
        return last(self.pool(hidden)) if is_linear else self.pool(last(hidden))

    def pool(self, x: Tensor) -> Tensor:
        """Shrink the patch grid of every frame, (T, patches^2, C) -> (T, N, C), as the model does."""
        # A view keeps channels last in memory: the values are the same, and 16-bit pooling on a GPU is 200 x as fast.
        x = x.unflatten(1, (self.patches, self.patches)).permute(0, 3, 1, 2)
        return F.interpolate(x, size=self.grid, mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)
