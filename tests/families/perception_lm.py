"""PerceptionLM with random weights on timm's Perception Encoder: 8 x 8 patches a frame, pooled to 4 x 4 tokens.

Without the package timm there is no such model, and the tests that need one are skipped by name.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tango.models.processors.llava import CHATML
from tests import tiny
from tests.families import Family, Inputs, Picture, Row, Video

SIZE, SIDE = 56, 8  # pixels and patches per side


def model(seed: int = 0, *, architecture: str = "vit_pe_lang_large_patch14_448", **settings: Any) -> Any:
    pytest.importorskip("timm", reason="PerceptionLM's tower needs timm")
    from transformers import PerceptionLMConfig, PerceptionLMForConditionalGeneration

    ids = tiny.tokenizer().convert_tokens_to_ids
    vision = {
        "model_type": "timm_wrapper", "architecture": architecture, "do_pooling": False,
        "model_args": {
            "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": [SIZE, SIZE], "patch_size": SIZE // SIDE,
            "global_pool": "", "use_post_transformer_norm": False, "ref_feat_shape": [SIDE, SIDE], "init_values": 1.0,
        },
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tiny.tokenizer()),
        "initializer_range": 0.2, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    config = PerceptionLMConfig(
        vision_config=vision, text_config=text, image_token_id=ids("<image>"), video_token_id=ids("<video>"),
        **{"vision_use_cls_token": True, "projector_pooling_ratio": 2, **settings},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = PerceptionLMForConditionalGeneration(config).eval()
        for parameter in built.model.vision_tower.parameters():  # timm's own start is nearly zero
            torch.nn.init.normal_(parameter, std=0.2)
    built.generation_config.eos_token_id = text["eos_token_id"]
    built.generation_config.pad_token_id = text["pad_token_id"]
    return built


def clip(video: Video) -> torch.Tensor:
    return tiny.clip(video.seed, video.frames)[..., ::2, ::2].contiguous()


def without_cls() -> Any:
    """As the tower of the largest checkpoint."""
    return model(architecture="vit_pe_lang_gigantic_patch14_448", vision_use_cls_token=False)


def inputs(*rows: Row) -> Inputs:
    """A picture is two tiles."""
    encode = tiny.tokenizer()
    video, image = (encode.convert_tokens_to_ids(token) for token in ("<video>", "<image>"))
    ids: list[list[int]] = []
    for row in rows:
        ids.append([])
        for part in row:
            if isinstance(part, str):
                ids[-1] += encode(part)["input_ids"]
            else:
                frames = part.frames if isinstance(part, Video) else 2
                ids[-1] += [video if isinstance(part, Video) else image] * (frames * SIDE**2 // 4)
    media = [part for row in rows for part in row if not isinstance(part, str)]
    clips = [clip(part) for part in media if isinstance(part, Video)]
    pictures = [clip(Video(2, 50 + part.seed)) for part in media if isinstance(part, Picture)]
    given: Inputs = dict(tiny.batch(*ids))
    if clips:
        same = len({len(c) for c in clips}) == 1
        given["pixel_values_videos"] = torch.stack(clips) if same else clips
        given["video_timestamps_s"] = [[1.5 * i for i in range(len(c))] for c in clips]
    if pictures:
        given["pixel_values"] = torch.stack(pictures)
    return given


def processor(_model: Any) -> Any:
    """The stock one: the family has none of its own."""
    pytest.importorskip("torchvision")
    from transformers import (
        PerceptionLMImageProcessor,
        PerceptionLMProcessor,
        PerceptionLMVideoProcessor,
        PreTrainedTokenizerFast,
    )

    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        padding_side="left", extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )  # fmt: skip
    return PerceptionLMProcessor(
        video_processor=PerceptionLMVideoProcessor(size={"height": SIZE, "width": SIZE}), tokenizer=tokens,
        chat_template=CHATML, patch_size=SIZE // SIDE, pooling_ratio=2,
        image_processor=PerceptionLMImageProcessor(tile_size=SIZE),
    )  # fmt: skip


FAMILY = Family(
    name="perception_lm",
    model=model,
    inputs=inputs,
    processor=processor,
    tokens_per_frame=SIDE**2 // 4,
    unequal=False,  # stock takes videos as one tensor
    stock_wrong={"several beams": "<5.20"},  # each video of a row goes to other beams than its row
)
