"""Video-LLaVA: a CLIP tower of its own for videos, no pooling, and every frame's CLS token among its placeholders."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.models.about import About
from tango.models.base import EncodedImages, EncodedVideos, register_adapter
from tango.models.calls import Inputs
from tango.models.fixed_grid import FixedGridAdapter
from tango.ops.device import to_device
from tango.ops.saliency import PoolingQuery
from tango.profiling import StageTimer
from tango.video.repeats import FIRST_EQUAL

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@register_adapter("video_llava")
class VideoLlavaAdapter(FixedGridAdapter):
    """Stock `VideoLlavaForConditionalGeneration`.

    A frame takes one placeholder more than its grid has tokens: the first is its CLS token, which stands outside of the
    grid. It is kept always, like a separator, and no ratio counts it. "p-attn" saliency is its attention in the last
    used block, and its state the frame embedding: Tango's choice for a tower without SigLIP's head.
    """

    title: ClassVar[str] = "Video-LLaVA"
    model_class: ClassVar[str] = "VideoLlavaForConditionalGeneration"
    about: ClassVar[About] = About(
        checkpoints=("LanguageBind/Video-LLaVA-7B-hf",),
        tokens="16 x 16, and a CLS token",
        notes="the CLS token of a frame always stays; its processor is transformers' own and needs torchvision",
    )
    consumed: ClassVar[frozenset[str]] = frozenset(
        {
            "pixel_values", "pixel_values_images", "pixel_values_videos", "vision_feature_layer",
            "vision_feature_select_strategy", "video_timestamps_s", FIRST_EQUAL,
        }
    )  # fmt: skip
    default_num_frames: ClassVar[int] = 8
    pooling_query: ClassVar[PoolingQuery] = "cls"

    @classmethod
    def side(cls, config: PretrainedConfig) -> int:
        return config.vision_config.image_size // config.vision_config.patch_size

    @classmethod
    def num_video_tokens(cls, config: PretrainedConfig, num_frames: int) -> int:
        return num_frames * (cls.tokens_per_step(config) + 1)

    @classmethod
    def tower(cls, model: PreTrainedModel) -> PreTrainedModel:
        return model.model.video_tower

    def encode_videos(self, inputs: Inputs, wants: Signal, timer: StageTimer) -> EncodedVideos:
        return super().encode_videos(inputs, wants | Signal.FRAME_EMBEDS, timer)  # states of CLS, for `lay_out`

    def encode_images(self, inputs: Inputs) -> EncodedImages | None:
        pixels = inputs.get("pixel_values")
        pixels = inputs.get("pixel_values_images") if pixels is None else pixels  # the name in transformers 5.17
        if pixels is None:
            return None
        output = self.model.model.get_image_features(to_device(pixels, self.device), return_dict=True)
        return EncodedImages(token_id=self.model.config.image_token_id, features=output.pooler_output.flatten(0, 1))

    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        (T, N, _), K, device = tokens.features.shape, len(pruned.indices), pruned.indices.device
        embeds = torch.cat([pruned.features, self.model.model.multi_modal_projector(tokens.frame_embeds)])
        stays = torch.zeros(T * N, dtype=torch.bool, device=device)
        stays[pruned.indices] = True
        keep_mask = torch.cat([stays.new_ones(T, 1), stays.view(T, N)], dim=1).flatten()
        # For each placeholder (T frames of CLS and N tokens): its row of `embeds`, where it is kept.
        cls = K + torch.arange(T, device=device)
        source = torch.cat([cls[:, None], (stays.cumsum(0) - 1).view(T, N)], dim=1).flatten()
        kept = keep_mask.byte().sort(descending=True, stable=True).indices[: K + T]
        return embeds[source[kept]], keep_mask
