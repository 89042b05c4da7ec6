"""Writes tiny checkpoints in lmms-lab's layout, from tiny transformers models, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tango.toy import tiny_model, tiny_tokenizer
from tests.tiny import IMAGE_SIZE

ROPE_THETA = 123456.0  # neither library's default


def twin(*, tied: bool = False, video: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model that a checkpoint is written from, with nothing left at a default."""
    model = tiny_model(tiny_tokenizer(), image_size=IMAGE_SIZE, width=32, layers=2)
    config = model.config
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": ROPE_THETA}
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    if video:
        config.mm_newline_position, config.mm_spatial_pool_mode = "grid", "average"
    rebuilt = type(model)(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in rebuilt.named_parameters():
            scale = 0.2 if "language_model" in name or "lm_head" in name else 0.05
            values = torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name)
            parameter.data = values.to(dtype)  # the buffers of rotary positions stay as they are
    return rebuilt


def original_name(key: str) -> str:
    """What lmms-lab calls a weight of transformers' model."""
    for ours, theirs in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def fields(model: Any, **changes: Any) -> dict[str, Any]:
    """`config.json` as lmms-lab writes it, with the tower's own size as the extension for tiny checkpoints."""
    text, video = model.config.text_config, getattr(model.config, "mm_newline_position", None) == "grid"
    vision = model.config.vision_config.to_dict()
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen" if not video else "llava",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": ROPE_THETA,
        "rope_scaling": {"type": "linear", "factor": 8.0},  # the originals ignore it
        "use_sliding_window": False,
        "tie_word_embeddings": model.config.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": text.eos_token_id,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[IMAGE_SIZE, IMAGE_SIZE], [IMAGE_SIZE, 2 * IMAGE_SIZE]],
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_vision_select_layer": -2,
        "mm_newline_position": "grid" if video else "one_token",
        "mm_spatial_pool_mode": "bilinear",  # also LLaVA-Video's file says so
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "vision_config": {key: vision[key] for key in kept},
        **changes,
    }


def write(folder: Path, model: Any, *, num_shards: int = 1, **changes: Any) -> Path:
    """Write a checkpoint; `changes` go into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields(model, **changes)))
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    generation |= {"attn_implementation": "flash_attention_2", "transformers_version": "4.40.0.dev0"}
    generation |= {"eos_token_id": [model.generation_config.eos_token_id], "pad_token_id": 257}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    weights = {original_name(key): value.contiguous() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as files of old releases hold it
    save_weights(folder, weights, num_shards)
    write_tokenizer(folder)
    return folder


def save_weights(folder: Path, weights: dict[str, torch.Tensor], num_shards: int) -> None:
    """One file, or several with an index."""
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return
    names = {key: f"model-{i % num_shards + 1:05}-of-{num_shards:05}.safetensors" for i, key in enumerate(weights)}
    for name in set(names.values()):
        save_file({k: v for k, v in weights.items() if names[k] == name}, folder / name, {"format": "pt"})
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    """Files of a Qwen2 tokenizer over bytes; like lmms-lab's it lacks the placeholders and has its own template."""
    full = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    full["added_tokens"] = [token for token in full["added_tokens"] if token["content"] not in ("<image>", "<video>")]
    vocab = full["model"]["vocab"]
    full["model"]["vocab"] = {token: i for token, i in vocab.items() if token not in ("<image>", "<video>")}
    (folder / "tokenizer.json").write_text(json.dumps(full))
    (folder / "vocab.json").write_text(json.dumps(full["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {token["content"]: token["id"] for token in full["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "add_prefix_space": False,
                "added_tokens_decoder": {
                    str(i): {"content": token, "lstrip": False, "rstrip": False, "normalized": False,
                             "single_word": False, "special": True}
                    for token, i in special.items()
                },
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "unk_token": None,
                "padding_side": "right",
                "model_max_length": 32768,
                "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            }
        )
    )  # fmt: skip
