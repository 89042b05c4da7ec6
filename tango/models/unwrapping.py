"""Finds the stock model inside what a caller passes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tango.errors import UnsupportedModelError
from tango.extensions import load_group
from tango.models.base import GROUP, Adapter, family, find_adapter, supported_model_types

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unwrap(model: nn.Module) -> tuple[PreTrainedModel, type[Adapter]]:
    """Find the supported model inside a wrapper, and its adapter.

    Known wrappers call the `generate` and `forward` of the very model inside: `torch.compile`'s, PEFT models that
    change layers (LoRA and the like), and DistributedDataParallel. One may be inside another.

    Raises:
        UnsupportedModelError: this is another wrapper, a part of a model, or a model that no adapter handles.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    found, config = type(model).__name__, getattr(model, "config", None)
    adapter = find_adapter(family(config))
    if adapter is None:
        raise UnsupportedModelError(
            f"no adapter for {found} (model type {family(config)!r}). Supported: {', '.join(supported_model_types())}; "
            f"if it wraps such a model, give that one instead, and wrap it afterwards{load_group(GROUP)}"
        )
    if adapter.model_class not in (cls.__name__ for cls in type(model).__mro__):
        parts = [name for name, part in model.named_children() if type(part).__name__ == adapter.model_class]
        inside = f" (here model.{parts[0]}, which is then pruned within this one)" if parts else ""
        raise UnsupportedModelError(
            f"expected a {adapter.model_class}, got {found}; if it wraps such a model{inside}, or is a part of one, "
            "give that model instead, and wrap it afterwards"
        )
    return model, adapter


def _inside(model: nn.Module) -> nn.Module | None:
    """The model inside a known wrapper; None if the model is no such wrapper."""
    # A module that was never imported cannot have made the wrapper.
    compiler, peft = sys.modules.get("torch._dynamo.eval_frame"), sys.modules.get("peft")
    if compiler is not None and isinstance(model, compiler.OptimizedModule):
        return model._orig_mod
    if isinstance(model, DistributedDataParallel):
        return model.module
    if peft is None or not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        return None
    if learnt := [name for name, config in model.peft_config.items() if getattr(config, "is_prompt_learning", False)]:
        raise UnsupportedModelError(
            f"the adapter {learnt[0]!r} of this {type(model).__name__} puts learnt tokens before the prompt, which "
            "cannot be pruned along; use one that changes layers (LoRA), or prune the base model, "
            "model.get_base_model(), without it"
        )
    return model.base_model.model
