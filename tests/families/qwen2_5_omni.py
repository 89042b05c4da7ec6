"""A tiny thinker of Qwen2.5-Omni with the real classes, and prompts whose videos may have sound between their steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from tango.models.processors.qwen import Patches
from tango.models.processors.qwen2_5_omni import FORM, QwenOmniProcessor
from tango.toy import tiny_tokenizer
from tests import tiny, tiny_qwen
from tests.families import Family, Picture, Row, Video

GRID, PICTURE = (4, 6), (1, 4, 8)  # patches of a step of two frames, and of a picture
SPECIAL = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
MEL, HOPS, HEARD = 16, 40, 10  # bands, columns and tokens of a sound
SECONDS = 1.0  # of a step
PER_CHUNK = 4 * 2  # positions of the two seconds that follow each other as steps, then sound


@cache
def tokenizer() -> Any:
    tokens = tiny_tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": list(SPECIAL.values())})
    return tokens


def config() -> Any:
    import transformers

    ids = {name: tokenizer().convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    eos, pad = (tokenizer().convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    vision = {
        "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 14, "window_size": 56,
        "fullatt_block_indexes": [1, 3], "out_hidden_size": 64, "initializer_range": 0.2,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": len(tokenizer()), "initializer_range": 0.2,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, "eos_token_id": eos,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }  # fmt: skip
    audio = {
        "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": MEL,
        "output_dim": 64, "n_window": 100, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.Qwen2_5OmniThinkerConfig(
        vision_config=vision, text_config=text, audio_config=audio,
        image_token_index=ids["image_token"], video_token_index=ids["video_token"],
        audio_token_index=ids["audio_token"], vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"], audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"], position_id_per_seconds=4, seconds_per_chunk=2,
        eos_token_id=eos, pad_token_id=pad,
    )  # fmt: skip


def model(seed: int = 0) -> Any:
    import transformers

    settings = config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = transformers.Qwen2_5OmniThinkerForConditionalGeneration(settings).eval()
    built.generation_config.eos_token_id = tokenizer().convert_tokens_to_ids("<|im_end|>")
    built.generation_config.pad_token_id = tokenizer().convert_tokens_to_ids("<|endoftext|>")
    return built


def inputs(*rows: Row, heard: bool = False) -> dict[str, Any]:
    """As every family's; `heard`: every video has a sound of its own, in chunks of two seconds."""
    (h, w), parts = GRID, [part for row in rows for part in row]
    videos, pictures = ([part for part in parts if isinstance(part, kind)] for kind in (Video, Picture))
    grids = [(-(-video.frames // 2), h, w) for video in videos]
    frame = "<|VIDEO|>" * (h * w // 4)

    def text(part: str | Video | Picture) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Picture):
            return "<|vision_bos|>" + "<|IMAGE|>" * (PICTURE[1] * PICTURE[2] // 4) + "<|vision_eos|>"
        steps, sound, body = -(-part.frames // 2), HEARD if heard else 0, ""
        while steps or sound:
            body += frame * min(steps, 2) + "<|AUDIO|>" * min(sound, PER_CHUNK)
            steps, sound = max(steps - 2, 0), max(sound - PER_CHUNK, 0)
        body = f"<|audio_bos|>{body}<|audio_eos|>" if heard else body
        return f"<|vision_bos|>{body}<|vision_eos|>"

    batch = tiny.batch(*(tokenizer()("".join(map(text, row)))["input_ids"] for row in rows))
    if videos:
        cut = [tiny_qwen.pixels("qwen2_5_vl", grid, video.seed) for grid, video in zip(grids, videos, strict=True)]
        batch["pixel_values_videos"], batch["video_grid_thw"] = torch.cat(cut), torch.tensor(grids)
        batch["video_second_per_grid"] = torch.full((len(videos),), SECONDS)
        batch["video_timestamps_s"] = [[SECONDS * i / 2 for i in range(video.frames)] for video in videos]
    if heard:
        sounds = [torch.Generator().manual_seed(video.seed) for video in videos]
        batch["input_features"] = torch.stack([torch.randn(MEL, HOPS, generator=sound) for sound in sounds])
        batch["feature_attention_mask"] = torch.ones(len(videos), HOPS, dtype=torch.long)
        batch["use_audio_in_video"] = True
    if pictures:
        batch["pixel_values"] = torch.cat([tiny_qwen.pixels("qwen2_5_vl", PICTURE, p.seed) for p in pictures])
        batch["image_grid_thw"] = torch.tensor([PICTURE] * len(pictures))
    return batch


def processor(_model: Any) -> QwenOmniProcessor:
    return QwenOmniProcessor(tokenizer(), form=FORM, patches=Patches(size=14, min_pixels=1))


FAMILY = Family(
    name="qwen2_5_omni_thinker", model=model, inputs=inputs, tokens_per_frame=6, frames_per_step=2, processor=processor,
    stock_wrong={"beams": "<5.18"},  # every row of patches is repeated by itself
)  # fmt: skip
