"""InternVL3 with random weights: 8 x 8 patches and a CLS token, 4 x 4 tokens a frame; pictures have three tiles."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tango.models.processors.internvl import InternVlProcessor
from tango.toy import tiny_tokenizer
from tests import tiny
from tests.families import Family, Inputs, Picture, Row, Video, for_stock

SIZE, N, TILES = 56, 16, 3
MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """With the marks under the names by which the stock processor knows them; the last token is `<video>`."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS.values())
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(special)._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={**MARKS, "video_token": "<video>"},
    )


def model(seed: int = 0, *, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    """By default like the smaller checkpoints of InternVL3: Qwen2 without a row for `<video>`, and a tower with biases
    but without norms of queries and keys or of its output."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    ids = tokenizer().convert_tokens_to_ids
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": (SIZE, SIZE), "patch_size": (7, 7), "attention_bias": True, "initializer_range": 0.2,
        "layer_scale_init_value": 1.0,
    }  # fmt: skip
    llm = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer()) - 1,
        "initializer_range": 0.2, "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    config = InternVLConfig(
        vision_config={**tower, **vision}, text_config={**llm, **(text or {})}, image_token_id=ids("<IMG_CONTEXT>"),
        image_seq_length=N, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = InternVLForConditionalGeneration(config).eval()
        embeddings = built.model.vision_tower.embeddings  # made as zeros
        torch.nn.init.normal_(embeddings.cls_token)
        torch.nn.init.normal_(embeddings.position_embeddings, std=0.3)
    built.generation_config.eos_token_id, built.generation_config.pad_token_id = (
        llm["eos_token_id"], llm["pad_token_id"],
    )  # fmt: skip
    return built


def processor() -> InternVlProcessor:
    return InternVlProcessor(tokenizer(), image_size=SIZE, tokens_per_tile=N, default_num_frames=8)


def pixels(medium: Video | Picture) -> Tensor:
    """Tiles (tiles, 3, h, w) of a medium; of a video only the right half changes."""
    generator = torch.Generator().manual_seed(medium.seed)
    count = medium.frames if isinstance(medium, Video) else TILES
    still = torch.randn(1, 3, SIZE, SIZE, generator=generator).expand(count, -1, -1, -1).clone()
    still[..., SIZE // 2 :] = torch.randn(count, 3, SIZE, SIZE // 2, generator=generator)
    return still


def text_of(part: str | Video | Picture) -> str:
    """As the processor writes it into a prompt."""
    if isinstance(part, str):
        return part
    if isinstance(part, Picture):
        return f"<img>{'<IMG_CONTEXT>' * N * TILES}</img>\n"
    tile = f"<img>{'<IMG_CONTEXT>' * N}</img>"
    return "\n".join(f"Frame{i + 1}: {tile}" for i in range(part.frames)) + "\n"


def inputs(*rows: Row) -> Inputs:
    given: Inputs = tiny.batch(*[tokenizer()("".join(map(text_of, row)))["input_ids"] for row in rows])
    media = [[part for part in row if not isinstance(part, str)] for row in rows]
    if flat := [medium for row in media for medium in row]:
        given["pixel_values"] = torch.cat([pixels(medium) for medium in flat])
        given["media"] = [
            [("video", m.frames) if isinstance(m, Video) else ("image", TILES) for m in row] for row in media
        ]
    if times := [[1.5 * i for i in range(m.frames)] for m in flat if isinstance(m, Video)]:
        given["video_timestamps_s"] = times
    return given


def stock(given: Inputs) -> Inputs:
    return {name: value for name, value in for_stock(given).items() if name != "media"}


FAMILY = Family(
    name="internvl",
    model=model,
    inputs=inputs,
    stock=stock,
    tokens_per_frame=N,
    # `generate` repeats every tile in place, so that beam 1 gets the tiles 1, 1, 1, 2, 2, 2.
    stock_wrong={"beams": "<5.20"},
)
