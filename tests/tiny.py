"""Tiny models with the real classes, built offline in a fraction of a second, and prompts for them."""

from __future__ import annotations

from functools import cache

import torch

from tango.models.pooling_head import PoolingHead
from tango.toy import tiny_model, tiny_siglip, tiny_tokenizer

IMAGE_SIZE = 112  # 8 x 8 patches, 4 x 4 tokens a frame


@cache
def tokenizer():
    return tiny_tokenizer()


def llava_onevision(seed: int = 0, *, layers: int = 2, **options):
    """A LLaVA-OneVision with random weights and a pooling head beside it, as `tango.load` would return it."""
    model = tiny_model(tokenizer(), image_size=IMAGE_SIZE, width=32, layers=layers, seed=seed, **options)
    siglip = tiny_siglip(model)
    model.__dict__["pooling_head"] = PoolingHead.from_tensors(dict(siglip.state_dict()), num_heads=4, eps=1e-6)
    return model


def clip(seed: int, num_frames: int = 6) -> torch.Tensor:
    """Pixels of one video (T, 3, h, w): noise that changes from frame to frame in the right half only."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator).expand(num_frames, -1, -1, -1).clone()
    still[..., IMAGE_SIZE // 2 :] = torch.randn(num_frames, 3, IMAGE_SIZE, IMAGE_SIZE // 2, generator=generator)
    return still


def num_placeholders(num_frames: int) -> int:
    return num_frames * (IMAGE_SIZE // 14 // 2) ** 2 + 1


def prompt(*parts: str | int) -> list[int]:
    """Ids of a prompt; an int stands for a video of that many frames."""
    video = tokenizer().convert_tokens_to_ids("<video>")
    ids: list[int] = []
    for part in parts:
        ids += [video] * num_placeholders(part) if isinstance(part, int) else tokenizer()(part)["input_ids"]
    return ids


def batch(*rows: list[int], side: str = "left") -> dict[str, torch.Tensor]:
    """Pad rows to one batch."""
    longest, pad = max(map(len, rows)), tokenizer().pad_token_id
    ids, mask = [], []
    for row in rows:
        padding = [pad] * (longest - len(row))
        ids.append(padding + row if side == "left" else row + padding)
        mask.append([0] * len(padding) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(padding))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def greedy_reference(model, short, row: int, steps: int) -> list[int]:
    """Greedy decoding of one shortened row by plain forward calls: no cache, no padding, no generate."""
    embeds = short.inputs_embeds[row : row + 1, short.attention_mask[row].bool()]
    new: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            token = model(inputs_embeds=embeds).logits[0, -1].argmax()
        new.append(int(token))
        if new[-1] == model.generation_config.eos_token_id:
            break
        embeds = torch.cat([embeds, model.get_input_embeddings()(token[None, None])], dim=1)
    return new


def new_tokens(model, inputs: dict, output: torch.Tensor) -> list[list[int]]:
    """What each row of `generate`'s output says after the prompt, without padding."""
    eos, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [[t for i, t in enumerate(row) if t != pad and eos not in row[:i]] for row in rows]


def llava_video(seed: int = 0, *, layers: int = 2, image_size: int = IMAGE_SIZE):
    """A LLaVA-Video with random weights and a pooling head beside it, as `tango.load` would return it."""
    model = tiny_model(tokenizer(), image_size=image_size, width=32, layers=layers, seed=seed)
    model.config.mm_newline_position, model.config.mm_spatial_pool_mode = "grid", "average"
    siglip = tiny_siglip(model)
    model.__dict__["pooling_head"] = PoolingHead.from_tensors(dict(siglip.state_dict()), num_heads=4, eps=1e-6)
    return model


def llava_next_video(seed: int = 0, *, layers: int = 4):
    """A LLaVA-NeXT-Video with random weights: 8 x 8 patches and a CLS token, two of three tower blocks in use."""
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    ids = tokenizer().convert_tokens_to_ids
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": IMAGE_SIZE, "patch_size": 14, "projection_dim": 32,
        "initializer_range": 0.2, "initializer_factor": 4.0,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.2,
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    config = LlavaNextVideoConfig(
        vision_config=vision, text_config=text, video_token_index=ids("<video>"), image_token_index=ids("<image>"),
        image_grid_pinpoints=[[IMAGE_SIZE, 2 * IMAGE_SIZE]],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaNextVideoForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        text["eos_token_id"], text["pad_token_id"],
    )  # fmt: skip
    return model


def llava_onevision_dinov2(seed: int = 0, *, layers: int = 4):
    """A LLaVA-OneVision whose tower is a DINOv2, with a CLS token that the features leave out, and a Llama."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    ids = tokenizer().convert_tokens_to_ids
    vision = {
        "model_type": "dinov2", "hidden_size": 32, "mlp_ratio": 2, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": IMAGE_SIZE, "patch_size": 14, "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.2,
        "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"), "tie_word_embeddings": True,
    }  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision, text_config=text, video_token_index=ids("<video>"), image_token_index=ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=True,
        image_grid_pinpoints=[[IMAGE_SIZE, 2 * IMAGE_SIZE]],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        text["eos_token_id"], text["pad_token_id"],
    )  # fmt: skip
    return model


TIMES = [[0.0, 1.5, 3.0, 4.5, 6.0, 7.5]]


def one_video() -> dict:
    inputs = batch(prompt("Look: ", 6, " What?"))
    return {**inputs, "pixel_values_videos": clip(1)[None], "video_timestamps_s": TIMES}


def three_videos() -> dict:
    """Rows of unequal length, the first with two videos; kept counts differ between them."""
    rows = batch(prompt("A ", 6, " B ", 6, " why?"), prompt("What is in this one? ", 6, " Tell me."))
    calm = clip(3)
    calm[:] = calm[:1]
    pixels = torch.stack([clip(2), calm, clip(4)])
    return {**rows, "pixel_values_videos": pixels, "video_timestamps_s": TIMES * 3}


def one_video_per_row() -> dict:
    inputs = three_videos()
    rows = batch(prompt("A ", 6, " why?"), prompt("What is in this one? ", 6, " Tell me."))
    return {**inputs, **rows, **{k: inputs[k][:2] for k in ("pixel_values_videos", "video_timestamps_s")}}
