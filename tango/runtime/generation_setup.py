"""What `generate` settles before it runs the model, for a pruned prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from torch import Tensor

from tango.errors import OptionError
from tango.ops.device import to_device

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from tango.models.splice import ShortPrompt

_DROPS_FULL_MASKS = Version(version("transformers")) >= Version("5.20")  # 5.17 does not


def prepare_special_tokens(
    stock: Callable[..., object],
    generation_config: GenerationConfig,
    kwargs_has_attention_mask: bool | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> None:
    """Let stock code make and check its tensors of special tokens on the host, then copy them to the device.

    Stock code makes them on the device and reads them again, and so waits four times for the tower and the pruner.
    """
    stock(generation_config, kwargs_has_attention_mask, device="cpu" if device is not None else None, **options)
    for name, value in list(vars(generation_config).items()):
        if device is not None and name.endswith("_token_tensor") and isinstance(value, Tensor):
            setattr(generation_config, name, to_device(value, torch.device(device)))


def mask_arguments(model: PreTrainedModel, short: ShortPrompt) -> dict[str, Tensor]:
    """The attention mask for `generate`, and with it the positions where it makes them from the mask.

    Stock code drops a mask that is full, and looks at its values to find out. Here the host knows, so a full mask is
    handed over on the host.
    """
    flash = "flash" in str(model.config.get_text_config()._attn_implementation)  # with a static cache it needs the mask
    if short.is_padded or flash or not _DROPS_FULL_MASKS:
        return {"attention_mask": short.attention_mask}
    return {"attention_mask": torch.ones(short.input_ids.shape, dtype=torch.long), "position_ids": short.position_ids}


def pad_token_id(model: PreTrainedModel) -> int:
    """The id for padding, which also stands where the model reads ids in place of video placeholders.

    Padding is masked, so any id will do there; a model that makes more of ids than embeddings reads the pads of its
    text config in place of media.
    """
    text = model.config.get_text_config()
    own = getattr(text, "pad_token_id", None)
    if isinstance(own, int) and 0 <= own < text.vocab_size:
        return own
    for source in (model.generation_config, model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            value = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(value, int):
                return value
    return 0


def check_positions(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> None:
    """Refuse what makes transformers take gaps between positions for borders of packed prompts: a call without a cache,
    or later chunks of a prefill with flash attention."""
    config = kwargs.get("generation_config") or model.generation_config
    if kwargs.get("use_cache", config.use_cache) is False:
        raise OptionError("positions='kept' needs the cache; leave out use_cache=False, or take 'contiguous'")
    chunked = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
    if chunked and "flash" in str(model.config.get_text_config()._attn_implementation):
        raise OptionError("positions='kept' and flash attention need the prefill in one piece, not in chunks")
