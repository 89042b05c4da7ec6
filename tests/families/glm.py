"""The GLM-V families: two frames a step, and 2 x 3 tokens a step; one placeholder for videos and images."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from tango.models import adapter_class
from tango.models.processors.glm import GlmProcessor
from tango.models.processors.qwen import Patches
from tango.toy import tiny_tokenizer
from tests import tiny, tiny_qwen
from tests.families import Family, Inputs, Picture, Row, Video

MARKS = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>")
STEP, STILL = (4, 6), (4, 8)  # rows and columns of patches
CLASSES = {"glm4v": "Glm4v", "glm4v_moe": "Glm4vMoe", "glm46v": "Glm46V"}


@cache
def tokenizer() -> Any:
    tokens = tiny_tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return tokens


def config(family: str, *, rotated: float = 0.5) -> Any:
    """A config as its class makes it, but small.

    Args:
        rotated: the share of a head's channels that are rotated; published checkpoints have half.
    """
    import transformers

    ids = tokenizer().convert_tokens_to_ids
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_heads": 2,
        "patch_size": 14, "image_size": 112, "initializer_range": 0.2,
    }  # fmt: skip
    sections = [1, 1, 2] if rotated == 0.5 else [2, 3, 3]
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.2,
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, "partial_rotary_factor": rotated,
        },
    }  # fmt: skip
    if family == "glm4v_moe":
        text |= {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "head_dim": 16,
        }  # fmt: skip
    return getattr(transformers, f"{CLASSES[family]}Config")(
        vision_config=vision, text_config=text, image_token_id=ids("<|image|>"), video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"), image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"), video_end_token_id=ids("<|end_of_video|>"),
    )  # fmt: skip


def model(family: str, seed: int = 0, **options: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    settings = config(family, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = AutoModelForImageTextToText.from_config(settings).eval()
    built.generation_config.eos_token_id = settings.text_config.eos_token_id
    built.generation_config.pad_token_id = settings.text_config.pad_token_id
    return built


def prompt(family: str, *parts: str | Video | Picture) -> list[int]:
    text, unit = "", " seconds" if family == "glm46v" else ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        rows, columns = STILL if isinstance(part, Picture) else STEP
        run = "<|begin_of_image|>" + "<|image|>" * (rows * columns // 4) + "<|end_of_image|>"
        if isinstance(part, Picture):
            text += run
        else:
            times = (f"{t}.0{unit}" if unit else f"{t}" for t in range(part.frames // 2))
            text += "<|begin_of_video|>" + "".join(run + time for time in times) + "<|end_of_video|>"
    return tokenizer()(text)["input_ids"]


def inputs(family: str, *rows: Row) -> Inputs:
    given = tiny.batch(*(prompt(family, *row) for row in rows))
    ids, token = given["input_ids"], tokenizer().convert_tokens_to_ids
    begun, ended = ((ids == token(mark)).cumsum(1) for mark in ("<|begin_of_video|>", "<|end_of_video|>"))
    given["mm_token_type_ids"] = (ids == token("<|image|>")).int() * (1 + (begun > ended).int())
    media = [part for row in rows for part in row if not isinstance(part, str)]
    pictures = [((1, *STILL), part.seed) for part in media if isinstance(part, Picture)]
    videos = [((part.frames // 2, *STEP), part.seed) for part in media if isinstance(part, Video)]
    for pixels, grids, own in (
        ("pixel_values", "image_grid_thw", pictures),
        ("pixel_values_videos", "video_grid_thw", videos),
    ):
        if own:  # patches as Qwen2-VL's: of 14 x 14 pixels, and of two frames
            given[pixels] = torch.cat([tiny_qwen.pixels("qwen2_vl", grid, seed) for grid, seed in own])
            given[grids] = torch.tensor([grid for grid, _ in own])
    if videos:
        given["video_timestamps_s"] = [[i / 2 for i in range(2 * steps)] for (steps, *_), _ in videos]
    return given


def processor(name: str, _model: Any) -> GlmProcessor:
    return GlmProcessor(tokenizer(), form=adapter_class(name).form, patches=Patches(size=14, min_pixels=1))


def family(name: str) -> Family:
    return Family(
        name=name,
        model=partial(model, name),
        inputs=partial(inputs, name),
        processor=partial(processor, name),
        tokens_per_frame=6,
        frames_per_step=2,
        stock_wrong={"beams": ">5.17"},  # stock raises: it looks for placeholders of its `video_token_id`
        pictures=False,  # stock code counts the placeholders of both as those of each, and raises
    )


FAMILIES = tuple(family(name) for name in CLASSES)
