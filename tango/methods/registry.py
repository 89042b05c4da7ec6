"""Names of methods. One class or preset, one name; unknown names and options fail with the list of known ones.

Methods of other people's packages are loaded when all names are asked for, or one that is not ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tango.errors import BudgetError, UnknownNameError
from tango.extensions import load_group
from tango.methods.base import LayerPruner, Pruner
from tango.ops.flops import solve_retention_ratio

GROUP = "tango.methods"  # of entry points

_METHODS: dict[str, type[Pruner] | type[LayerPruner]] = {}

M = TypeVar("M", bound="type[Pruner] | type[LayerPruner]")


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a pruner or a layer pruner known by `name`.

    Example:
        @tango.register("centre")
        @dataclass(frozen=True, kw_only=True)
        class CentrePruner(tango.Pruner):
            ...

    Raises:
        ValueError: the name is taken or not lower-case words joined by hyphens.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a method's name must be lower-case words joined by hyphens, got {name!r}")
    if name in _METHODS:
        raise ValueError(f"method {name!r} is already registered by {_METHODS[name].__qualname__}")

    def add(cls: M) -> M:
        cls.name = name
        _METHODS[name] = cls
        return cls

    return add


def available_methods() -> list[str]:
    """Names that `tango.prune` accepts: methods before the LLM and inside it, sorted."""
    return _names((Pruner, LayerPruner))


def available_pruners() -> list[str]:
    """Names that `build_pruner` accepts, the methods before the LLM, sorted."""
    return _names(Pruner)


def ready_pruners() -> list[str]:
    """Those of `available_pruners` that run as they are; a learned one needs its weights first."""
    return [name for name in available_pruners() if not hasattr(_METHODS[name], "weights")]


def available_layer_pruners() -> list[str]:
    """Names that `build_layer_pruner` accepts, the methods inside the LLM, sorted."""
    return _names(LayerPruner)


def _names(kind: type | tuple[type, ...]) -> list[str]:
    load_group(GROUP)
    return sorted(name for name, cls in _METHODS.items() if issubclass(cls, kind))


def method_class(name: str) -> type[Pruner] | type[LayerPruner]:
    """The class behind a name.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    return _class("method", name, (Pruner, LayerPruner))


def pruner_class(name: str) -> type[Pruner]:
    """The class behind the name of a method before the LLM.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    return _class("method", name, Pruner)


def layer_pruner_class(name: str) -> type[LayerPruner]:
    """The class behind a layer pruner's name.

    Raises:
        UnknownNameError: no such layer pruner; the message lists them.
    """
    return _class("layer pruner", name, LayerPruner)


def _class(what: str, name: str, kind: Any) -> Any:
    if name not in _METHODS:
        load_group(GROUP)
    cls = _METHODS.get(name)
    if cls is None or not issubclass(cls, kind):
        raise UnknownNameError(what, name, _names(kind), load_group(GROUP))
    return cls


def build_pruner(name: str, /, **options: Any) -> Pruner:
    """Build a method before the LLM from its name and options, which are the fields of its class.

    Raises:
        UnknownNameError: unknown method or option; the message lists the known ones.
        BudgetError, ValueError: an option is out of range.
    """
    cls = pruner_class(name)
    _check_options(cls, name, options)
    return cls(**options)


def build_layer_pruner(name: str, /, **options: Any) -> LayerPruner:
    """Build a layer pruner from its name and options, which are the fields of its class.

    Raises:
        UnknownNameError: unknown layer pruner or option; the message lists the known ones.
        BudgetError, ValueError: an option is out of range.
    """
    cls = layer_pruner_class(name)
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
    share = 1.0 if layer_pruner is None else layer_pruner.mean_share(num_layers)
    ratio = solve_retention_ratio(mean, num_layers=num_layers) / share
    if ratio > 1:
        raise BudgetError(
            f"mean_retention_ratio {mean:.4g} is out of reach: if all visual tokens enter the LLM, pruning inside it "
            f"leaves {share:.4g}; prune later, or keep more there"
        )
    threshold = getattr(build_pruner(name, **options, retention_ratio=mean), "resolved_segment_threshold", None)
    if threshold is not None:
        options = {**options, "segment_threshold": threshold}
    return build_pruner(name, **options, retention_ratio=ratio)


def build_layer_pruner_for_mean(
    name: str, num_layers: int, mean_retention_ratio: float | None = None, **options: Any
) -> LayerPruner:
    """Build a layer pruner as a method of its own: all tokens enter the LLM, and the ratio is the mean over its layers.

    Args:
        mean_retention_ratio: may also be given as the option `retention_ratio`; 0.1 if neither is.
    Raises:
        BudgetError: the mean cannot be reached, or both are given.
        UnknownNameError: unknown layer pruner or option; the message lists the known ones.
    """
    if mean_retention_ratio is not None and "retention_ratio" in options:
        raise BudgetError(
            f"for {name} retention_ratio is the mean over the LLM's layers; leave out mean_retention_ratio"
        )
    mean = options.pop("retention_ratio", 0.1 if mean_retention_ratio is None else mean_retention_ratio)
    return build_layer_pruner(name, **options).for_mean(mean, num_layers)


def _check_options(cls: type, name: str, options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
