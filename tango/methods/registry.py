"""Names of methods. One class or preset, one name; unknown names and options fail with the list of known ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tango.errors import BudgetError, UnknownNameError
from tango.methods.base import LayerPruner, Pruner
from tango.ops.flops import solve_retention_ratio

_PRUNERS: dict[str, type[Pruner]] = {}
_LAYER_PRUNERS: dict[str, type[LayerPruner]] = {}

P = TypeVar("P", bound=Pruner)
L = TypeVar("L", bound=LayerPruner)


def register(name: str) -> Callable[[type[P]], type[P]]:
    """Class decorator: make a pruner known by `name`.

    Raises:
        ValueError: the name is taken or not lower-case words joined by hyphens.
    """
    _check_name(name, _PRUNERS)

    def add(cls: type[P]) -> type[P]:
        cls.name = name
        _PRUNERS[name] = cls
        return cls

    return add


def register_layer(name: str) -> Callable[[type[L]], type[L]]:
    """Class decorator: make a layer pruner known by `name`.

    Raises:
        ValueError: the name is taken or not lower-case words joined by hyphens.
    """
    _check_name(name, _LAYER_PRUNERS)

    def add(cls: type[L]) -> type[L]:
        cls.name = name
        _LAYER_PRUNERS[name] = cls
        return cls

    return add


def _check_name(name: str, taken: Mapping[str, type]) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a method's name must be lower-case words joined by hyphens, got {name!r}")
    if name in taken:
        raise ValueError(f"method {name!r} is already registered by {taken[name].__qualname__}")


def available_pruners() -> list[str]:
    """Names that `build_pruner` and `tango.prune` accept, sorted."""
    return sorted(_PRUNERS)


def pruner_class(name: str) -> type[Pruner]:
    """The class behind a name.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    if name not in _PRUNERS:
        raise UnknownNameError("method", name, _PRUNERS)
    return _PRUNERS[name]


def build_pruner(name: str, **options: Any) -> Pruner:
    """Build a method from its name and options, which are the fields of its class.

    Raises:
        UnknownNameError: unknown method or option; the message lists the known ones.
        BudgetError, ValueError: an option is out of range.
    """
    cls = pruner_class(name)
    _check_options(cls, name, options)
    return cls(**options)


def build_pruner_for_mean(
    name: str, mean: float, layer_pruner: LayerPruner | None, num_layers: int, **options: Any
) -> Pruner:
    """Build a method whose retention ratio gives this mean over the LLM's layers.

    A segment threshold that depends on the ratio goes by the mean, as in the release.

    Raises:
        BudgetError: the mean cannot be reached, or `retention_ratio` is given as well.
        UnknownNameError: unknown method or option; the message lists the known ones.
    """
    if "retention_ratio" in options:
        raise BudgetError("give retention_ratio (before the LLM) or mean_retention_ratio (over its layers), not both")
    inside: dict[str, Any] = {}
    if layer_pruner is not None:
        inside = {"layer": layer_pruner.layer, "layer_retention_ratio": layer_pruner.retention_ratio}
    ratio = solve_retention_ratio(mean, num_layers=num_layers, **inside)
    threshold = getattr(build_pruner(name, **options, retention_ratio=mean), "resolved_segment_threshold", None)
    if threshold is not None:
        options = {**options, "segment_threshold": threshold}
    return build_pruner(name, **options, retention_ratio=ratio)


def available_layer_pruners() -> list[str]:
    """Names that `build_layer_pruner` and the `layer_pruner` of `tango.prune` accept, sorted."""
    return sorted(_LAYER_PRUNERS)


def layer_pruner_class(name: str) -> type[LayerPruner]:
    """The class behind a layer pruner's name.

    Raises:
        UnknownNameError: no such layer pruner; the message lists them.
    """
    if name not in _LAYER_PRUNERS:
        raise UnknownNameError("layer pruner", name, _LAYER_PRUNERS)
    return _LAYER_PRUNERS[name]


def build_layer_pruner(name: str, **options: Any) -> LayerPruner:
    """Build a layer pruner from its name and options, which are the fields of its class.

    Raises:
        UnknownNameError: unknown layer pruner or option; the message lists the known ones.
        BudgetError, ValueError: an option is out of range.
    """
    cls = layer_pruner_class(name)
    _check_options(cls, name, options)
    return cls(**options)


def _check_options(cls: type, name: str, options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
