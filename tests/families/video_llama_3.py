"""A tiny VideoLLaMA 3 with the real classes: frames of 4 x 6 patches, a picture of 2 x 3."""

from __future__ import annotations

from typing import Any

import torch

from tango.models.processors.qwen import Patches
from tango.models.processors.video_llama_3 import FORM, VideoLlama3Processor
from tests import tiny, tiny_qwen
from tests.families import Family, Picture, Video

PATCH, FRAME, PICTURE = 14, (4, 6), (1, 2, 3)


def model(seed: int = 0) -> Any:
    import transformers

    ids = tiny_qwen.tokenizer().convert_tokens_to_ids
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "patch_size": PATCH, "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tiny_qwen.tokenizer()),
        "initializer_range": 0.2, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    config = transformers.VideoLlama3Config(
        vision_config=vision, text_config=text,
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = transformers.VideoLlama3ForConditionalGeneration(config).eval()
    built.generation_config.eos_token_id = text["eos_token_id"]
    built.generation_config.pad_token_id = text["pad_token_id"]
    return built


def pixels(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3 * PATCH**2, generator=torch.Generator().manual_seed(seed))


def inputs(*rows: tuple[str | Video | Picture, ...]) -> dict[str, Any]:
    (h, w), parts = FRAME, [part for row in rows for part in row]
    videos, pictures = ([part for part in parts if isinstance(part, kind)] for kind in (Video, Picture))

    def text(part: str | Video | Picture) -> str:
        if isinstance(part, Video):
            frame = "<|video_pad|>" * (h * w // 4)
            return ",".join(f"Time {2 * i}.0s:{frame}" for i in range(part.frames))
        return part if isinstance(part, str) else "<|image_pad|>" * (PICTURE[1] * PICTURE[2])

    batch = tiny.batch(*(tiny_qwen.tokenizer()("".join(map(text, row)))["input_ids"] for row in rows))
    if videos:
        batch["pixel_values_videos"] = torch.cat([pixels(video.frames * h * w, video.seed) for video in videos])
        batch["video_grid_thw"] = torch.tensor([(video.frames, h, w) for video in videos])
        batch["video_merge_sizes"] = torch.full((len(videos),), 2)
        batch["video_timestamps_s"] = [[2.0 * i for i in range(video.frames)] for video in videos]
    if pictures:
        batch["pixel_values"] = torch.cat([pixels(PICTURE[1] * PICTURE[2], picture.seed) for picture in pictures])
        batch["image_grid_thw"] = torch.tensor([PICTURE] * len(pictures))
        batch["image_merge_sizes"] = torch.ones(len(pictures), dtype=torch.long)
    return batch


def processor(_model: Any) -> VideoLlama3Processor:
    patches = Patches(size=PATCH, temporal=1, min_pixels=1, shared_pixels=64 * 28**2)
    return VideoLlama3Processor(tiny_qwen.tokenizer(), form=FORM, patches=patches)


FAMILY = Family(name="video_llama_3", model=model, inputs=inputs, tokens_per_frame=6, processor=processor)
