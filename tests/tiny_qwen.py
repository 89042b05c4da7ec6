"""Tiny Qwen-VL models with the real classes, and prompts for them."""

from __future__ import annotations

from functools import cache

import torch

from tango.toy import tiny_tokenizer
from tests import tiny

Grid = tuple[int, int, int]  # temporal steps, rows and columns of patches
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
MORE = ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")  # the tower and the prompts of Qwen3-VL
ALL = (*FAMILIES, *MORE)
WIDE, TALL, STILL = (3, 4, 6), (2, 8, 6), (1, 4, 8)  # 2 x 3, 4 x 3 and 2 x 4 tokens a step
PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, **dict.fromkeys(("qwen3_vl", *MORE), 16)}
# Whole seconds, and short enough for the text after the videos to start where stock transformers has it.
SECONDS = 1.0


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# One layer of linear attention to each of full attention, which rotates half of its channels.
HYBRID = {
    "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24,
    "rope_parameters": {
        "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "partial_rotary_factor": 0.5
    },
}  # fmt: skip


@cache
def tokenizer():
    tokens = tiny_tokenizer()
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokens.add_special_tokens({"additional_special_tokens": special})
    return tokens


def config(family: str, **vision):
    """A config with windows of 2 x 2 tokens (Qwen2.5-VL) and full attention in the last block."""
    import transformers

    ids = tokenizer().convert_tokens_to_ids
    name = {
        "qwen2_vl": "Qwen2VLConfig", "qwen2_5_vl": "Qwen2_5_VLConfig", "qwen3_vl": "Qwen3VLConfig",
        "qwen3_vl_moe": "Qwen3VLMoeConfig", "qwen3_5": "Qwen3_5Config", "qwen3_5_moe": "Qwen3_5MoeConfig",
    }[family]  # fmt: skip
    newest = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 64}
    own = {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 56,
            "fullatt_block_indexes": [1, 3], "tokens_per_second": 2,
        },
        "qwen3_vl": {**newest, "deepstack_visual_indexes": [0, 2]},
        "qwen3_vl_moe": {**newest, "deepstack_visual_indexes": [0, 2]},
    }.get(family, newest)  # fmt: skip
    shared = {"depth": 4, "num_heads": 2, "patch_size": PATCH[family], "initializer_range": 0.2}
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.2,
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        **({"head_dim": 16} if family in ("qwen3_vl", "qwen3_vl_moe") else {}),
        **(EXPERTS if "moe" in family else {}),
        **(HYBRID if "qwen3_5" in family else {}),
        **({"shared_expert_intermediate_size": 40} if family == "qwen3_5_moe" else {}),
    }  # fmt: skip
    return getattr(transformers, name)(
        vision_config={**shared, **own, **vision}, text_config=text,
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )  # fmt: skip


def model(family: str, seed: int = 0, **vision):
    from transformers import AutoModelForImageTextToText

    settings = config(family, **vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = AutoModelForImageTextToText.from_config(settings).eval()
    built.generation_config.eos_token_id = settings.text_config.eos_token_id
    built.generation_config.pad_token_id = settings.text_config.pad_token_id
    return built


def pixels(family: str, grid: Grid, seed: int) -> torch.Tensor:
    """Patches of one video or image; later steps resemble the first."""
    t, h, w = grid
    generator = torch.Generator().manual_seed(seed)
    size = 3 * 2 * PATCH[family] ** 2
    still, noise = torch.randn(1, h * w, size, generator=generator), torch.randn(t, h * w, size, generator=generator)
    return (still + 0.3 * noise).flatten(0, 1)


def prompt(family: str, *parts: str | Grid) -> list[int]:
    """Ids of a prompt. A grid stands for a video; one of a single step for an image."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        t, h, w = part
        kind = "<|image_pad|>" if t == 1 else "<|video_pad|>"
        frame = kind * (h * w // 4)
        if t > 1 and family in ("qwen3_vl", *MORE):
            text += "".join(f"<{i}.5 seconds><|vision_start|>{frame}<|vision_end|>" for i in range(t))
        else:
            text += "<|vision_start|>" + frame * t + "<|vision_end|>"
    return tokenizer()(text)["input_ids"]


def inputs(family: str, *rows: tuple[str | Grid, ...], side: str = "left") -> dict:
    """Everything that `generate` of a pruned model takes for a batch of prompts."""
    batch = tiny.batch(*(prompt(family, *row) for row in rows), side=side)
    media = [part for row in rows for part in row if not isinstance(part, str)]
    cut = [(grid, pixels(family, grid, seed)) for seed, grid in enumerate(media)]
    ids, settings = batch["input_ids"], config(family)
    kinds = (ids == settings.image_token_id).int() + 2 * (ids == settings.video_token_id).int()
    videos, images = [c for c in cut if c[0][0] > 1], [c for c in cut if c[0][0] == 1]
    batch["mm_token_type_ids"] = kinds
    if videos:
        batch["pixel_values_videos"] = torch.cat([x for _, x in videos])
        batch["video_grid_thw"] = torch.tensor([grid for grid, _ in videos])
        batch["video_timestamps_s"] = [[SECONDS * i / 2 for i in range(2 * grid[0])] for grid, _ in videos]
    if videos and family == "qwen2_5_vl":
        batch["second_per_grid_ts"] = torch.full((len(videos),), SECONDS)
    if images:
        batch["pixel_values"] = torch.cat([x for _, x in images])
        batch["image_grid_thw"] = torch.tensor([grid for grid, _ in images])
    return batch


def stock(batch: dict) -> dict:
    """The inputs that stock models know."""
    return {k: v for k, v in batch.items() if k not in ("video_timestamps_s", "video_first_equal")}


def one_row(family: str, batch: dict, rows: list[tuple], row: int) -> dict:
    """One row of a batch alone, without padding."""
    media = [(i, part) for i, r in enumerate(rows) for part in r if not isinstance(part, str)]
    alone = inputs(family, rows[row])
    for name, still in (("pixel_values_videos", False), ("pixel_values", True)):
        if name in alone:
            lengths = [(i, t * h * w) for i, (t, h, w) in media if (t == 1) == still]
            pieces = batch[name].split([n for _, n in lengths])
            alone[name] = torch.cat([x for (i, _), x in zip(lengths, pieces, strict=True) if i == row])
    return alone


def greedy_reference(built, short, row: int, steps: int, deepstack: list[torch.Tensor] | None = None) -> list[int]:
    """Greedy decoding of one shortened row by plain calls of the decoder: no cache, no padding, no generate.

    Args:
        deepstack: features (B, S, D) for the first layers, zero where there are none.
    """
    seen = short.attention_mask[row].bool()
    embeds, positions = short.inputs_embeds[row : row + 1, seen], short.position_ids[1:, row : row + 1, seen]
    new: list[int] = []
    for _ in range(steps):
        extra = {}
        if deepstack is not None:
            rows = [torch.nn.functional.pad(layer[row, seen], (0, 0, 0, len(new))) for layer in deepstack]
            everywhere = torch.ones(embeds.shape[:2], dtype=torch.bool)
            extra = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": rows}
        with torch.no_grad():
            hidden = built.model.language_model(inputs_embeds=embeds, position_ids=positions, **extra)
            token = built.lm_head(hidden.last_hidden_state)[0, -1].argmax()
        new.append(int(token))
        if new[-1] == built.generation_config.eos_token_id:
            break
        embeds = torch.cat([embeds, built.get_input_embeddings()(token[None, None])], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=2)
    return new
