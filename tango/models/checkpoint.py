"""Checks a checkpoint's files before they are used: a fault is one line with the file's name and the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from tango.errors import CheckpointError, TangoError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_SAYS_ENOUGH = (OSError, ValueError, ImportError, RuntimeError, SafetensorError)  # their text is clear without the type
# Sizes that must be at least 1, each with a bound that no checkpoint reaches: a slip there would ask for terabytes.
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "depth"), 1_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "head_dim"), 10_000),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels", "in_chans"), 10_000),
    **dict.fromkeys(("hidden_size", "out_hidden_size", "intermediate_size", "embed_dim", "image_size"), 1_000_000),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 100_000_000),
}


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn any error that a library raises for a broken checkpoint into one line.

    Raises:
        CheckpointError: the code inside raised. Tango's own errors and lack of memory pass unchanged.
    """
    try:
        yield
    except (TangoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if not text or not isinstance(error, _SAYS_ENOUGH):
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        raise CheckpointError(f"cannot load {what}: {text[:500]}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: the file cannot be read, is no JSON, or holds something else.
    """
    check_file(file)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise CheckpointError(f"cannot read {file}: it is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"cannot read {file}: expected a JSON object, got {type(fields).__name__}")
    return fields


def check_file(file: Path) -> None:
    """Refuse a file without its content.

    Raises:
        CheckpointError: the file is empty, or the pointer that git leaves where git-lfs is missing.
    """
    with reading(file), file.open("rb") as opened:
        start = opened.read(len(_POINTER))
    if not start:
        raise CheckpointError(f"cannot load {file}: it is empty; download it again")
    if start == _POINTER:
        raise CheckpointError(
            f"cannot load {file}: it is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder, or "
            "download it again"
        )


def check_config_file(folder: Path) -> dict[str, Any]:
    """Read the fields of a checkpoint's `config.json`.

    Raises:
        CheckpointError: the file is missing or cannot be read, the folder holds a LoRA adapter, or the file names
            weights of a kind that may run code.
    """
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise CheckpointError(
            f"{folder} holds an adapter (LoRA) for {base}, not a whole model; load the base model with tango.load and "
            "put the adapter on it with peft, or merge them (merge_and_unload) and save the result"
        )
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    fields = read_json(file)
    for part in (fields, fields.get("vision_config"), fields.get("text_config")):
        for name, most in _SIZES.items():
            value = part.get(name) if isinstance(part, dict) else None
            if any(isinstance(one, int) and one > most for one in _sides(name, value)):  # before anybody lists so many
                raise CheckpointError(f"cannot load {file}: {name} must be at most {most}, got {str(value)[:30]}")
    weights = fields.get("transformers_weights")
    if weights is not None and not str(weights).endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(f"{file} names the weights {weights!r}; expected a file in safetensors")
    return fields


def check_config(file: Path, config: PretrainedConfig) -> None:
    """Refuse sizes that no model can have, in a parsed config and its parts.

    Raises:
        CheckpointError: a size is no whole number from 1, or is far too large; or the config asks for a kernel's code.
    """
    parts = {"": config, "vision_config.": getattr(config, "vision_config", None)}
    parts["text_config."] = config.get_text_config()
    for part, settings in parts.items():
        for name, most in _SIZES.items():
            value = getattr(settings, "__dict__", {}).get(name)  # some configs refuse what may differ between layers
            if value is not None and not all(type(one) is int and 1 <= one <= most for one in _sides(name, value)):
                raise CheckpointError(
                    f"cannot load {file}: {part}{name} must be a whole number from 1 to {most}, got {str(value)[:50]}"
                )
        kernel = getattr(settings, "_attn_implementation", None)
        if kernel is not None and "/" in str(kernel):
            raise CheckpointError(
                f"cannot load {file}: it asks for the attention kernel {kernel!r}, which is code from the hub; remove "
                "that field, and name a kernel with attn_implementation if you trust it"
            )


def _sides(name: str, value: Any) -> Sequence[Any]:
    """The numbers of a size: one, or those of height and width."""
    two = name in ("image_size", "patch_size") and isinstance(value, (list, tuple)) and len(value) == 2
    return value if two else (value,)


def check_weight_files(folder: Path) -> int:
    """Check the weight files of a checkpoint without reading the weights; return how many numbers they hold.

    Raises:
        CheckpointError: there are no safetensors, one of several files is missing, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no weights in safetensors; {_instead(folder)}")
    if any(re.match(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", file.name) for file in files):
        raise CheckpointError(f"{folder} holds a distributed checkpoint; load and save it as a whole model first")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise CheckpointError(f"cannot read {index}: weight_map must say for every weight in which file it is")
        present = {file.name for file in files}
        lost = sorted(set(named.values()) - present)
        if lost:
            raise CheckpointError(
                f"{folder} lacks {len(lost)} of the {len(set(named.values()))} files that {index.name} names: "
                f"{some(lost)}; download it again"
            )
    return sum(map(_count_numbers, files))


def _count_numbers(file: Path) -> int:
    check_file(file)
    try:
        with safe_open(file, "pt") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot load {file}: it is cut short, damaged or no safetensors file ({' '.join(str(error).split())}); "
            "download it again"
        ) from error
    return sum(torch.Size(shape).numel() for shape in shapes)


def _instead(folder: Path) -> str:
    """The way out for a folder without safetensors."""
    others = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if others:
        return (
            f"{some(others)} can run code when it is read, and is not; convert it where you trust it: load it with "
            "transformers and save_pretrained, which writes safetensors"
        )
    return (
        "expected model.safetensors, or model.safetensors.index.json and the files that it names (pickled weights such "
        "as pytorch_model.bin are never read)"
    )


def load_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint; `options` go to `from_pretrained`.

    Raises:
        CheckpointError: there is no tokenizer, or it is broken.
    """
    from transformers import AutoTokenizer

    for name in _TOKENIZER:
        if (folder / name).is_file():
            check_file(folder / name)
    if not any((folder / name).is_file() for name in _TOKENIZER[:5]):
        raise CheckpointError(f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json with merges.txt")
    with reading(f"the tokenizer of {folder}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)


def some(names: Sequence[str], most: int = 3) -> str:
    """List the first few of many names."""
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
