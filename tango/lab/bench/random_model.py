"""Models of the published shapes with random weights, made on the device itself: to measure speed without a download.

Classes and processors are the real ones; the tokenizer knows only bytes and the special tokens. Answers are
meaningless, and methods see noise; times, memory and token counts are those of the shape.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tango.errors import OptionError, UnknownNameError
from tango.models import adapter_class
from tango.models.pooling_head import PoolingHead
from tango.models.processors import glm
from tango.models.processors.smolvlm import FAKE, WHOLE
from tango.ops.llm_shapes import PUBLISHED_SHAPES, DeltaNet, Experts, Shape
from tango.toy import tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

# Not published: narrow and shallow, for trying things out.
_TINY: dict[str, Any] = {
    "width": 256, "mlp_width": 512, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64
}  # fmt: skip
_TINY_HYBRID: dict[str, Any] = {
    **_TINY, "mlp_width": 0, "delta_layers": (0, 1, 2),
    "experts": Experts(count=8, active=2, width=128, shared_width=64, shared_gate=True),
    "delta_net": DeltaNet(num_key_heads=2, num_value_heads=4, key_dim=32, value_dim=32, kernel=4),
}  # fmt: skip
SHAPES = {
    **PUBLISHED_SHAPES,
    **{
        f"{family}-tiny": replace(PUBLISHED_SHAPES[f"{family}-7b"], **_TINY)
        for family in ("llava-onevision", "llava-video", "qwen2.5-vl")
    },
    "glm-4.1v-tiny": replace(PUBLISHED_SHAPES["glm-4.1v-9b"], **_TINY),
    "qwen3-vl-tiny": replace(PUBLISHED_SHAPES["qwen3-vl-8b"], **_TINY),
    "qwen3.5-tiny": replace(PUBLISHED_SHAPES["qwen3.5-35b-a3b"], **_TINY_HYBRID),
    "internvl3-tiny": replace(PUBLISHED_SHAPES["internvl3-8b"], **_TINY),
}
_FAMILIES = (
    *("llava-onevision", "llava-video", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "internvl3", "internvl3.5"),
    *("glm-4.1v", "glm-4.5v", "smolvlm2"),
)
# Rows of the vocabulary: by size in config.json of Qwen/Qwen2-* and Qwen/Qwen2.5-*, by family since. The small ones
# reuse them as head.
_VOCABULARIES = {
    "0.5b": 151936, "3b": 151936, "7b": 152064, "32b": 152064, "72b": 152064, "qwen3-vl": 151936, "qwen3.5": 248320,
    "internvl3": 151674, "internvl3.5": 151936, "glm-4.1v": 151552, "glm-4.5v": 151552, "smolvlm2": 49280,
}  # fmt: skip
_TIED = ("0.5b", "3b", "qwen3-vl-2b", "qwen3-vl-4b", "tiny")
# vision_config of google/siglip-so400m-patch14-384, without its last block and head, as LLaVA's checkpoints have it.
_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
# That of SmolVLM2-256M and -500M, which is SigLIP-base's; the 2.2B has SO400M's, with its last block.
_SIGLIP_BASE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 512, "patch_size": 16,
}  # fmt: skip
_TINY_SIGLIP = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
# vision_config of Qwen/Qwen2.5-VL-7B-Instruct; the sizes differ in `out_hidden_size`, from 32B on also in the MLP.
_QWEN_TOWER: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
_TINY_QWEN_TOWER = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4}
# vision_config of Qwen/Qwen3-VL-8B-Instruct and, without the features for deeper layers, of Qwen/Qwen3.5-*.
_QWEN3_TOWER: dict[str, Any] = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
}  # fmt: skip
_SMALL_QWEN3_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}  # of the 2B and 4B
_DEEPSTACK = {27: (8, 16, 24), 24: (5, 11, 17), 2: (0,)}  # by depth: blocks with features for the LLM's first layers
# vision_config of OpenGVLab/InternVL3-8B-hf, which is the class's default but for the biases, and of InternVL3-38B-hf.
_INTERN_VIT: dict[str, Any] = {"attention_bias": True}
_LARGE_INTERN_VIT: dict[str, Any] = {
    "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45, "num_attention_heads": 25,
    "use_qk_norm": True, "norm_type": "rms_norm",
}  # fmt: skip
_TINY_INTERN_VIT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_INTERNVL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>"]
# vision_config of zai-org/GLM-4.1V-9B-Thinking and GLM-4.5V; the merger is as wide as the LLM's MLP.
_GLM_TOWER: dict[str, Any] = {
    "depth": 24, "hidden_size": 1536, "num_heads": 12, "patch_size": 14, "image_size": 336, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip
_QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def build(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    layers: int | None = None,
    tower_layers: int | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a model and its processor, as `tango.load` would return them; LLaVA's have a random pooling head.

    The global random generators are left as they were.

    Args:
        layers, tower_layers: fewer layers of LLM and tower than published; the widths do not change.
    Raises:
        UnknownNameError: there is no such shape.
        OptionError: `layers` or `tower_layers` is below 1 or more than published.
    """
    from transformers import AutoModelForImageTextToText

    if name not in SHAPES:
        raise UnknownNameError("shape", name, SHAPES)
    tokenizer = tiny_tokenizer()
    config = make_config(name, tokenizer, layers=layers, tower_layers=tower_layers)
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, **options).eval()
            if config.vision_config.model_type in ("siglip_vision_model", "smolvlm_vision"):
                model.__dict__["pooling_head"] = _random_head(config.vision_config.to_dict())
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    with tempfile.TemporaryDirectory() as empty:  # where a checkpoint would have files of its own
        processor = adapter_class(config).make_processor(Path(empty), config, tokenizer)
    return model, processor


def make_config(
    name: str, tokenizer: PreTrainedTokenizerBase, *, layers: int | None = None, tower_layers: int | None = None
) -> PretrainedConfig:
    """The transformers config of a shape; its placeholders are tokens of this tokenizer, which are added if missing."""
    import transformers

    family = next(family for family in _FAMILIES if name.startswith(f"{family}-"))
    size, llm = name.removeprefix(f"{family}-"), SHAPES[name]
    ids, rows = tokenizer.convert_tokens_to_ids, _VOCABULARIES.get(family) or _VOCABULARIES.get(size, 512)
    text = {
        "hidden_size": llm.width, "intermediate_size": llm.mlp_width, "num_attention_heads": llm.num_heads,
        "num_hidden_layers": _fewer("layers", layers, llm.num_layers), "num_key_value_heads": llm.num_kv_heads,
        "vocab_size": 512 if size == "tiny" else rows, "tie_word_embeddings": size in _TIED or name in _TIED,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 128000, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    if family.startswith("glm"):
        tokenizer.add_special_tokens({"additional_special_tokens": list(glm.TOKENS.values())})
        config_class, tower = _glm(name, llm, text, tower_layers)
        tokens = {name: ids(token) for name, token in glm.TOKENS.items()}
        return config_class(vision_config=tower, text_config=text, tie_word_embeddings=size in _TIED, **tokens)
    if family.startswith("qwen"):
        tokenizer.add_special_tokens({"additional_special_tokens": _QWEN_TOKENS})
        make = _qwen2_5_vl if family == "qwen2.5-vl" else _qwen3
        config_class, tower = make(name, llm, text, tower_layers)
        return config_class(
            vision_config=tower, text_config=text, tie_word_embeddings=text["tie_word_embeddings"],
            image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
            vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
        )  # fmt: skip
    if family.startswith("internvl"):
        tokenizer.add_special_tokens({"additional_special_tokens": _INTERNVL_TOKENS})
        text |= _qwen3_text(llm) if family == "internvl3.5" else {"model_type": "qwen2"}
        large = _LARGE_INTERN_VIT if size in ("38b", "78b", "241b-a28b") else _INTERN_VIT
        tower = _TINY_INTERN_VIT if size == "tiny" else large
        depth = _fewer("tower layers", tower_layers, tower.get("num_hidden_layers", 24))
        return transformers.InternVLConfig(
            vision_config={**tower, "num_hidden_layers": depth}, text_config={**text, "tie_word_embeddings": False},
            image_token_id=ids("<IMG_CONTEXT>"), tie_word_embeddings=False,
        )  # fmt: skip
    if family == "smolvlm2":
        return _smolvlm2(size, text, tokenizer, tower_layers)
    tower = {**_SIGLIP, **(_TINY_SIGLIP if size == "tiny" else {})}
    tower["num_hidden_layers"] = _fewer("tower layers", tower_layers, tower["num_hidden_layers"])
    config = transformers.LlavaOnevisionConfig(
        vision_config=tower, text_config={"model_type": "qwen2", **text}, image_token_index=ids("<image>"),
        video_token_index=ids("<video>"), vision_feature_layer=-1, tie_word_embeddings=text["tie_word_embeddings"],
    )  # fmt: skip
    if family == "llava-video":
        config.mm_newline_position, config.mm_spatial_pool_mode = "grid", "average"
    return config


def _smolvlm2(
    size: str, text: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tower_layers: int | None
) -> PretrainedConfig:
    from transformers import SmolVLMConfig

    tokenizer.add_special_tokens({"additional_special_tokens": [FAKE, WHOLE, "<end_of_utterance>"]})
    tower, scale = (_SIGLIP | {"num_hidden_layers": 27}, 3) if size == "2.2b" else (_SIGLIP_BASE, 4)
    tower = {name: value for name, value in tower.items() if name not in ("model_type", "vision_use_head")}
    tower["num_hidden_layers"] = _fewer("tower layers", tower_layers, tower["num_hidden_layers"])
    image = tokenizer.convert_tokens_to_ids("<image>")
    llama = {"model_type": "llama", **text}
    return SmolVLMConfig(vision_config=tower, text_config=llama, scale_factor=scale, image_token_id=image)


def _qwen2_5_vl(
    name: str, llm: Shape, text: dict[str, Any], tower_layers: int | None
) -> tuple[type[PretrainedConfig], dict[str, Any]]:
    """The class of the config, and the tower's part; the text's part is completed."""
    from transformers import Qwen2_5_VLConfig

    eighth = llm.head_dim // 8  # of a head's channels: time has two eighths, rows and columns three, all in pairs
    text["rope_parameters"] |= {"mrope_section": [eighth, 3 * eighth // 2, 3 * eighth // 2]}
    tower = {**_QWEN_TOWER, **(_TINY_QWEN_TOWER if name.endswith("tiny") else {}), "out_hidden_size": llm.width}
    if name.endswith(("-32b", "-72b")):
        tower["intermediate_size"] = 3456
    depth = _fewer("tower layers", tower_layers, tower["depth"])
    whole_frames = [i for i in tower["fullatt_block_indexes"] if i < depth - 1]
    return Qwen2_5_VLConfig, tower | {"depth": depth, "fullatt_block_indexes": [*whole_frames, depth - 1]}


def _qwen3(
    name: str, llm: Shape, text: dict[str, Any], tower_layers: int | None
) -> tuple[type[PretrainedConfig], dict[str, Any]]:
    """As `_qwen2_5_vl`, for Qwen3-VL and Qwen3.5, each with experts or without."""
    import transformers

    text["head_dim"] = llm.head_dim
    if (experts := llm.experts) is not None:
        text |= {
            "num_experts": experts.count, "num_experts_per_tok": experts.active, "moe_intermediate_size": experts.width,
            "shared_expert_intermediate_size": experts.shared_width,
        }  # fmt: skip
    small = _TINY_QWEN_TOWER if name.endswith("-tiny") else _SMALL_QWEN3_TOWER if name.endswith(("-2b", "-4b")) else {}
    tower = {**_QWEN3_TOWER, **small, "out_hidden_size": llm.width}
    deeper = _DEEPSTACK[tower["depth"]]
    tower["depth"] = _fewer("tower layers", tower_layers, tower["depth"])
    if (net := llm.delta_net) is None:
        n = llm.head_dim // 32  # of 16 parts of a head's pairs of channels time has six, rows and columns five each
        text["rope_parameters"] |= {"mrope_section": [6 * n, 5 * n, 5 * n], "mrope_interleaved": True}
        tower["deepstack_visual_indexes"] = [i for i in deeper if i < tower["depth"]]
        return (transformers.Qwen3VLConfig if experts is None else transformers.Qwen3VLMoeConfig), tower
    if text["num_hidden_layers"] < 4:
        raise OptionError("the fourth layer is the first with keys and values; ask for at least 4 layers")
    pairs = llm.head_dim // 8  # a quarter of a head's channels is rotated
    third = (pairs + 2) // 3
    text["rope_parameters"] |= {"mrope_section": [third, third, pairs - 2 * third], "partial_rotary_factor": 0.25}
    text |= {
        "linear_num_key_heads": net.num_key_heads, "linear_num_value_heads": net.num_value_heads,
        "linear_key_head_dim": net.key_dim, "linear_value_head_dim": net.value_dim,
        "linear_conv_kernel_dim": net.kernel,
    }  # fmt: skip
    return (transformers.Qwen3_5Config if experts is None else transformers.Qwen3_5MoeConfig), tower


def _qwen3_text(llm: Shape) -> dict[str, Any]:
    """What a Qwen3's config has beside the numbers of a Qwen2's."""
    if (experts := llm.experts) is None:
        return {"model_type": "qwen3", "head_dim": llm.head_dim}
    return {
        "model_type": "qwen3_moe", "head_dim": llm.head_dim, "num_experts": experts.count,
        "num_experts_per_tok": experts.active, "moe_intermediate_size": experts.width,
    }  # fmt: skip


def _glm(
    name: str, llm: Shape, text: dict[str, Any], tower_layers: int | None
) -> tuple[type[PretrainedConfig], dict[str, Any]]:
    """As `_qwen2_5_vl`."""
    import transformers

    n = llm.head_dim // 16  # half of a head's channels is rotated; of their pairs time has two eighths
    text["rope_parameters"] |= {"mrope_section": [n, 3 * n // 2, 3 * n // 2], "partial_rotary_factor": 0.5}
    tower = {**_GLM_TOWER, **(_TINY_QWEN_TOWER if name.endswith("-tiny") else {}), "out_hidden_size": llm.width}
    tower |= {"depth": _fewer("tower layers", tower_layers, tower["depth"]), "intermediate_size": llm.mlp_width}
    if (experts := llm.experts) is None:
        return transformers.Glm4vConfig, tower
    text |= {
        "head_dim": llm.head_dim, "n_routed_experts": experts.count, "num_experts_per_tok": experts.active,
        "moe_intermediate_size": experts.width, "n_shared_experts": experts.shared_width // experts.width,
        "first_k_dense_replace": len(llm.dense_layers),
    }  # fmt: skip
    return transformers.Glm4vMoeConfig, tower


def _fewer(what: str, asked: int | None, published: int) -> int:
    if asked is not None and not 1 <= asked <= published:
        raise OptionError(f"this shape has {published} {what}; ask for 1 to {published}, got {asked}")
    return published if asked is None else asked


def _random_head(vision: dict[str, Any]) -> PoolingHead:
    """The attention-pooling head of a SigLIP of this width, with random weights, on the current default device."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**{**vision, "num_hidden_layers": 1, "vision_use_head": True})
    tensors = {name: tensor.float() for name, tensor in SiglipVisionModel(config).state_dict().items()}
    return PoolingHead.from_tensors(tensors, num_heads=config.num_attention_heads, eps=config.layer_norm_eps)
