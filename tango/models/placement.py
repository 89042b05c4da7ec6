"""Where the parts of a model compute, and its weights while they lie elsewhere.

`device_map` may spread a model over several devices, or leave weights in the host's memory or on the disk until they
are needed. Then accelerate's hooks bring inputs and weights to a module when it is called; what reads a weight by
itself, or makes a module's input, asks here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def _hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate's on a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [] if hook is None else [hook])


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module begins to compute.

    Example:
        >>> device_of(model.model.vision_tower)
        device(type='cpu')
    """
    first = next(module.parameters()).device
    if first.type != "meta":
        return first
    hooks = (hook for part in module.modules() for hook in _hooks(part))
    found = (getattr(hook, "execution_device", None) for hook in hooks)
    return next((torch.device(device) for device in found if device is not None), first)


def is_sharded(module: nn.Module) -> bool:
    """Whether weights are spread over processes, as tensor parallelism does."""
    return any(hasattr(parameter, "device_mesh") for parameter in module.parameters())


def weight_of(module: nn.Module, name: str) -> Tensor:
    """A parameter of the module's own, wherever it lies.

    Example:
        >>> weight_of(model.model.language_model.norm, "weight").shape == (model.config.text_config.hidden_size,)
        True
    """
    weight: Tensor = getattr(module, name)
    if weight.device.type != "meta":
        return weight
    maps = (hook.weights_map for hook in _hooks(module) if getattr(hook, "weights_map", None) is not None)
    return next((held[name] for held in maps), weight)
