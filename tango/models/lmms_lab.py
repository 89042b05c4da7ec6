"""Checkpoints in lmms-lab's own layout, read straight into transformers' LLaVA-OneVision class.

They are `lmms-lab/llava-onevision-qwen2-*-ov*` and `lmms-lab/LLaVA-Video-*-Qwen2`. Nothing is converted on disk:
`from_pretrained` renames the weights while it reads them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tango.errors import CheckpointError, UnsupportedModelError
from tango.models import checkpoint
from tango.models.processors.llava import CHATML
from tango.models.weights import read_model

# The tower that the originals hard-code: so400m without its last block, so that the last hidden state is the one used.
SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
# `rope_scaling` is missing on purpose: the originals switch it off whatever the file says.
_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta",
    "use_sliding_window", "sliding_window", "max_window_layers", "attention_dropout", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
KEY_MAPPING = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
_PLACEHOLDERS = ("<image>", "<video>")


def is_lmms_lab(folder: Path) -> bool:
    """Whether a checkpoint's `config.json` is of this layout. A file that cannot be read is not."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(fields, dict)
        and fields.get("model_type") in ("llava", "llava_qwen")
        and bool(fields.get("mm_vision_tower"))
    )


def read_config(folder: Path) -> Any:
    """The `LlavaOnevisionConfig` that describes a checkpoint of this layout.

    A dictionary `vision_config` in `config.json` (our own extension) describes another SigLIP tower than so400m, as
    it is stored. LLaVA-Video gets the two attributes that mark it (see `tango.models.llava_video`).

    Raises:
        UnsupportedModelError: the model is built in a way that the LLaVA-OneVision class cannot express.
        CheckpointError: a field has a value that it cannot have.
    """
    file = folder / "config.json"
    fields = checkpoint.check_config_file(folder)
    with checkpoint.reading(file):
        _check(fields)
        config = _config(fields)
    checkpoint.check_config(file, config)
    return config


def _config(fields: dict[str, Any]) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(**{**(fields.get("vision_config") or SIGLIP_SO400M), "vision_use_head": False})
    options: dict[str, Any] = {
        "vision_aspect_ratio": fields.get("image_aspect_ratio"),
        "image_grid_pinpoints": _pinpoints(fields.get("image_grid_pinpoints"), vision.image_size),
        "dtype": fields.get("torch_dtype") or fields.get("dtype"),
    }
    if _newline_position(fields) == "grid":  # the file's own pool mode is wrong; the originals' loader replaces it, too
        options |= {"mm_newline_position": "grid", "mm_spatial_pool_mode": "average"}
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**{key: fields[key] for key in _TEXT_KEYS if key in fields}),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        architectures=["LlavaOnevisionForConditionalGeneration"],
        **{name: value for name, value in options.items() if value is not None},
    )


def _newline_position(fields: dict[str, Any]) -> str:
    return fields.get("mm_newline_position") or "one_token"


def _pinpoints(value: Any, unit: int) -> Any:
    """Sizes of images in pixels; files may say "(1x1),...,(6x6)" for all sizes between two, in units of the tower."""
    if not isinstance(value, str):
        return value
    sizes = [(int(h), int(w)) for h, w in re.findall(r"\((\d+)x(\d+)\)", value)]
    if not sizes:
        raise ValueError(f"image_grid_pinpoints must be a list or like '(1x1),...,(6x6)', got {value!r}")
    (top, left), (bottom, right) = sizes[0], sizes[-1]
    return [[h * unit, w * unit] for h in range(top, bottom + 1) for w in range(left, right + 1)]


def _check(fields: dict[str, Any]) -> None:
    architecture = (fields.get("architectures") or ["LlavaQwenForCausalLM"])[0]
    tower, projector = fields["mm_vision_tower"], fields.get("mm_projector_type")
    newline = _newline_position(fields)
    wanted = (
        ("architectures", architecture, architecture == "LlavaQwenForCausalLM", "LlavaQwenForCausalLM"),
        ("mm_vision_tower", tower, "siglip" in str(tower).lower(), "a SigLIP"),
        ("mm_projector_type", projector, projector == "mlp2x_gelu", "mlp2x_gelu"),
        ("mm_newline_position", newline, newline in ("one_token", "grid"), "one_token or grid"),
    )
    for name, got, fits, expected in wanted:
        if not fits:
            raise UnsupportedModelError(f"this lmms-lab checkpoint has {name} {got!r}; expected {expected}")


def load_model(folder: Path, config: Any, **options: Any) -> Any:
    """Read the weights; `options` are those of `from_pretrained`.

    Raises:
        CheckpointError: weights are missing, left over or of another shape than the config says.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    options |= {"key_mapping": KEY_MAPPING, "strict": True}
    model = read_model(LlavaOnevisionForConditionalGeneration, folder, config, **options)
    model.__dict__.pop("_weight_conversions", None)  # save_pretrained would bring the old names back
    return model


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The checkpoint's tokenizer with the two placeholder tokens; their ids are noted in `config`.

    Raises:
        CheckpointError: the embedding has no rows left for the placeholders.
    """
    tokenizer = checkpoint.load_tokenizer(folder, config=config)
    tokenizer.add_tokens(list(_PLACEHOLDERS), special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHATML  # the file's own, if any, knows text alone
    image, video = tokenizer.convert_tokens_to_ids(list(_PLACEHOLDERS))
    if max(image, video) >= config.text_config.vocab_size:
        raise CheckpointError(
            f"cannot load {folder}: its tokenizer has {len(tokenizer)} tokens with {' and '.join(_PLACEHOLDERS)}, "
            f"more than the {config.text_config.vocab_size} rows of the embedding"
        )
    config.image_token_id, config.video_token_id = image, video
    return tokenizer
