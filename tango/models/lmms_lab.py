"""Reads checkpoints in lmms-lab's own layout straight into transformers' LLaVA-OneVision class.

These are `lmms-lab/llava-onevision-qwen2-*-ov*` and `lmms-lab/LLaVA-Video-*-Qwen2`. Nothing is converted on disk:
`from_pretrained` renames the weights while it reads them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tango.errors import CheckpointError, UnsupportedModelError
from tango.models import checkpoint
from tango.models.processors.llava import CHATML
from tango.models.weights import read_model

if TYPE_CHECKING:
    from transformers import LlavaOnevisionConfig, PreTrainedModel, PreTrainedTokenizerBase

# The tower that the originals hard-code: so400m without its last block, so that its last hidden state is the used one.
SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
# `rope_scaling` is left out on purpose: the originals switch it off whatever the file says.
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
    """Whether a checkpoint's `config.json` has this layout; False for a file that cannot be read."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(fields, dict)
        and fields.get("model_type") in ("llava", "llava_qwen")
        and bool(fields.get("mm_vision_tower"))
    )


def read_config(folder: Path) -> LlavaOnevisionConfig:
    """Describe a checkpoint of this layout as a `LlavaOnevisionConfig`.

    A dictionary `vision_config` in `config.json` (our own extension) describes the stored SigLIP tower where it is not
    so400m. LLaVA-Video gets the two attributes that mark it (see `tango.models.llava_video`).

    Raises:
        UnsupportedModelError: the LLaVA-OneVision class cannot express this model.
        CheckpointError: a field has an impossible value.
    """
    file = folder / "config.json"
    fields = checkpoint.check_config_file(folder)
    with checkpoint.reading(file):
        _check(fields)
        config = _config(fields)
    checkpoint.check_config(file, config)
    return config


def _config(fields: dict[str, Any]) -> LlavaOnevisionConfig:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    vision = SiglipVisionConfig(**{**(fields.get("vision_config") or SIGLIP_SO400M), "vision_use_head": False})
    options: dict[str, Any] = {
        "vision_aspect_ratio": fields.get("image_aspect_ratio"),
        "image_grid_pinpoints": _pinpoints(fields.get("image_grid_pinpoints"), vision.image_size),
        "dtype": fields.get("torch_dtype") or fields.get("dtype"),
    }
    if _newline_position(fields) == "grid":  # the file's pool mode is wrong; the originals' loader replaces it, too
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


def _pinpoints(value: object, unit: int) -> object:
    """Image sizes in pixels; a file may say "(1x1),...,(6x6)" for all sizes between two, in units of `unit` pixels."""
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


def load_model(folder: Path, config: LlavaOnevisionConfig, **options: Any) -> PreTrainedModel:
    """Load the model; `options` go to `from_pretrained`.

    Raises:
        CheckpointError: weights are missing, left over or of another shape than the config says.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    options |= {"key_mapping": KEY_MAPPING, "strict": True}
    model = read_model(LlavaOnevisionForConditionalGeneration, folder, config, **options)
    model.__dict__.pop("_weight_conversions", None)  # save_pretrained would bring the old names back
    return model


def load_tokenizer(folder: Path, config: LlavaOnevisionConfig) -> PreTrainedTokenizerBase:
    """Load the checkpoint's tokenizer, add the two placeholder tokens, and write their ids into `config`.

    Raises:
        CheckpointError: the embedding has no rows left for the placeholders.
    """
    tokenizer = checkpoint.load_tokenizer(folder, config=config)
    tokenizer.add_tokens(list(_PLACEHOLDERS), special_tokens=True)
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHATML  # a template in the checkpoint handles text alone
    image, video = tokenizer.convert_tokens_to_ids(list(_PLACEHOLDERS))
    if max(image, video) >= config.text_config.vocab_size:
        raise CheckpointError(
            f"cannot load {folder}: its tokenizer has {len(tokenizer)} tokens with {' and '.join(_PLACEHOLDERS)}, "
            f"more than the {config.text_config.vocab_size} rows of the embedding"
        )
    config.image_token_id, config.video_token_id = image, video
    return tokenizer
