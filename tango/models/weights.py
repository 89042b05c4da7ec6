"""Loads a model from a checkpoint, and refuses it unless every weight comes from the checkpoint.

transformers fills missing weights with random numbers and goes on: such a model answers, but its answers are noise.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tango.errors import CheckpointError
from tango.models.checkpoint import check_weight_files, read_json, reading, some

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Tensors of older files that no model uses: buffers, and the head of SigLIP, which LLaVA's towers lack.
_HARMLESS = re.compile(r"\.inv_freq$|\.position_ids$|(^|\.)vision_tower\.(vision_model\.)?head\.")

_AFFORDABLE = 500_000_000  # missing parameters that may be filled with random numbers before the model is refused


def read_model(
    cls: type[PreTrainedModel], folder: Path, config: PretrainedConfig, *, strict: bool = False, **options: Any
) -> PreTrainedModel:
    """Load a model with `cls.from_pretrained`, from safetensors alone and without code from the checkpoint.

    Args:
        cls: the model's class, or an Auto class.
        strict: refuse every weight that the model does not use. Otherwise weights of a part that the model lacks (a
            head for another task) raise a warning.
        options: passed on to `from_pretrained`.
    Raises:
        CheckpointError: weights are missing, left over, of other names or of other shapes than `config` says; or they
            cannot be read at all.
    """
    numbers = check_weight_files(folder)
    if (folder / "generation_config.json").is_file():
        read_json(folder / "generation_config.json")
    if options.get("quantization_config") is None and getattr(config, "quantization_config", None) is None:
        _check_size(folder, config, numbers)
    # transformers' own error would not name the weights of another shape; `_refuse` does.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with reading(folder):
        model, info = cls.from_pretrained(
            folder, config=config, use_safetensors=True, trust_remote_code=False, **options
        )
    left_over = sorted(key for key in info["unexpected_keys"] if not _HARMLESS.search(key))
    parts = {_unnumbered(name) for name, _ in model.named_modules()} - {"", "model"}
    ours = left_over if strict else [key for key in left_over if _belongs(key, parts)]
    _refuse(folder, "missing", info["missing_keys"], _instead(left_over))
    _refuse(folder, "of another shape than config.json says", map(_shapes, info["mismatched_keys"]))
    if getattr(model, "hf_quantizer", None) is None:  # else numbers of the quantization stand beside the weights
        _refuse(folder, "unexpected", ours, "; config.json describes fewer layers or parts than the weights have")
    if left_over:
        warnings.warn(f"{len(left_over)} weights of {folder} are not used: {some(left_over)}", stacklevel=3)
    return model


def check_finite(folder: Path, model: PreTrainedModel) -> None:
    """Refuse weights that are NaN or infinite; every weight is read once, on its device.

    Raises:
        CheckpointError: some weights are not finite.
    """
    wrong = [name for name, parameter in model.named_parameters() if not _is_finite(parameter)]
    dtype = str(model.dtype).removeprefix("torch.")
    _refuse(folder, "NaN or infinite", wrong, f"; the checkpoint is broken, or its numbers are too large for {dtype}")


def _is_finite(parameter: torch.Tensor) -> bool:
    if hasattr(parameter, "to_local"):  # the part of this process
        parameter = parameter.to_local()
    # Quantised weights are integers, or of classes that cannot be summed.
    plain = type(parameter.data) is torch.Tensor
    if not plain or not parameter.is_floating_point() or parameter.itemsize < 2 or parameter.device.type == "meta":
        return True
    wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return bool(parameter.detach().sum(dtype=wide).isfinite())  # NaN and infinity survive a sum, which needs no memory


def _check_size(folder: Path, config: PretrainedConfig, numbers: int) -> None:
    """Refuse the config of a far larger model before memory is allocated; smaller faults are named after loading.

    Raises:
        CheckpointError: the config has more than twice the parameters that the files hold, and gigabytes of them.
    """
    from transformers import AutoModelForImageTextToText

    with reading(folder), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    described = sum(parameter.numel() for parameter in model.parameters())
    if described > 2 * numbers + _AFFORDABLE:
        raise CheckpointError(
            f"cannot load {folder}: config.json describes a model of {described} parameters, but the weights hold "
            f"{numbers}; most are missing, or config.json is of another model"
        )


def _refuse(folder: Path, what: str, keys: Iterable[str], why: str = "") -> None:
    names = sorted(keys)
    if names:
        raise CheckpointError(f"cannot load {folder}: {len(names)} weights are {what}: {some(names)}{why}")


def _instead(left_over: list[str]) -> str:
    if not left_over:
        return "; download the checkpoint again"
    return f"; {len(left_over)} others have names that the model does not know: {some(left_over)}"


def _shapes(mismatch: tuple[str, Iterable[int], Iterable[int]]) -> str:
    name, found, expected = mismatch
    return f"{name} ({'x'.join(map(str, found))}, not {'x'.join(map(str, expected))})"


def _belongs(key: str, parts: set[str]) -> bool:
    """Whether a weight belongs to a part that the model has: a further layer of a list, or a tensor of a module."""
    pieces = _unnumbered(key).split(".")
    return any(".".join(pieces[:end]) in parts for end in range(1, len(pieces)))


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "0", name)
