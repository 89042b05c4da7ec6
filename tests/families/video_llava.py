"""Video-LLaVA with random weights: 8 x 8 patches and a CLS token a frame, two of three tower blocks in use."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from tango.models.processors.llava import CHATML
from tests import tiny
from tests.families import Family, Inputs, Picture, Row, Video

SIZE, SIDE = 56, 8  # pixels and patches per side


def model(seed: int = 0, **settings: Any) -> Any:
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    ids = tiny.tokenizer().convert_tokens_to_ids
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": SIZE, "patch_size": SIZE // SIDE, "projection_dim": 32,
        "initializer_range": 0.2, "initializer_factor": 4.0,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tiny.tokenizer()),
        "initializer_range": 0.2, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    config = VideoLlavaConfig(
        vision_config=vision, text_config=text, video_token_index=ids("<video>"), image_token_index=ids("<image>"),
        **settings,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = VideoLlavaForConditionalGeneration(config).eval()
    built.generation_config.eos_token_id = text["eos_token_id"]
    built.generation_config.pad_token_id = text["pad_token_id"]
    return built


def image_input() -> str:
    """What the installed stock model calls its images."""
    from transformers import VideoLlavaForConditionalGeneration

    known = inspect.signature(VideoLlavaForConditionalGeneration.forward).parameters
    return "pixel_values" if "pixel_values" in known else "pixel_values_images"


def clip(video: Video) -> torch.Tensor:
    return tiny.clip(video.seed, video.frames)[..., ::2, ::2].contiguous()


def inputs(*rows: Row) -> Inputs:
    encode = tiny.tokenizer()
    video, image = (encode.convert_tokens_to_ids(token) for token in ("<video>", "<image>"))
    ids: list[list[int]] = []
    for row in rows:
        ids.append([])
        for part in row:
            if isinstance(part, str):
                ids[-1] += encode(part)["input_ids"]
            else:
                frames = part.frames * (SIDE**2 + 1) if isinstance(part, Video) else SIDE**2
                ids[-1] += [video if isinstance(part, Video) else image] * frames
    media = [part for row in rows for part in row if not isinstance(part, str)]
    clips = [clip(part) for part in media if isinstance(part, Video)]
    pictures = [clip(Video(1, 50 + part.seed))[0] for part in media if isinstance(part, Picture)]
    given: Inputs = dict(tiny.batch(*ids))
    if clips:
        same = len({len(c) for c in clips}) == 1
        given["pixel_values_videos"] = torch.stack(clips) if same else clips
        given["video_timestamps_s"] = [[1.5 * i for i in range(len(c))] for c in clips]
    if pictures:
        given[image_input()] = torch.stack(pictures)
    return given


def processor(_model: Any) -> Any:
    """The stock one: the family has none of its own."""
    pytest.importorskip("torchvision")
    from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor

    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return VideoLlavaProcessor(
        video_processor=VideoLlavaVideoProcessor(**size), image_processor=VideoLlavaImageProcessor(**size),
        tokenizer=tiny.tokenizer(), chat_template=CHATML, patch_size=SIZE // SIDE,
    )  # fmt: skip


FAMILY = Family(
    name="video_llava",
    model=model,
    inputs=inputs,
    processor=processor,
    tokens_per_frame=SIDE**2,  # and a CLS token, which is never pruned
    unequal=False,  # stock takes videos as one tensor
    stock_wrong={"several beams": "<5.20"},  # each video of a row goes to other beams than its row
)
