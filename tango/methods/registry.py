"""The names of methods, one for each class. Unknown names and options are refused with the list of known ones.

Other people's packages are loaded when someone asks for all names, or for one that is not ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tango.errors import UnknownNameError
from tango.extensions import load_group
from tango.methods.base import LayerPruner, Method, Pruner, TowerMerger

GROUP = "tango.methods"  # of entry points

_METHODS: dict[str, type[Pruner] | type[LayerPruner] | type[TowerMerger]] = {}

MethodClass = TypeVar("MethodClass", bound="type[Pruner] | type[LayerPruner] | type[TowerMerger]")
AnyMethod = TypeVar("AnyMethod", bound=Method)


def register(name: str) -> Callable[[MethodClass], MethodClass]:
    """Register the decorated pruner, layer pruner or tower merger under `name`, which every command then knows.

    Raises:
        ValueError: the name is taken or not lower-case words joined by hyphens, or an option has no default.
    Example:
        >>> from dataclasses import dataclass
        >>> @tango.register("tango-frames")
        ... @dataclass(frozen=True, kw_only=True)
        ... class TangoFramesPruner(tango.TangoPruner):
        ...     rope: str = "frames"
        >>> len(tango.build_pruner("tango-frames", retention_ratio=0.25, exact_budget=True)(tokens).indices)
        72
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a method's name must be lower-case words joined by hyphens, got {name!r}")
    if name in _METHODS:
        raise ValueError(f"method {name!r} is already registered by {_METHODS[name].__qualname__}")

    def add(cls: MethodClass) -> MethodClass:
        for field in dataclasses.fields(cls):
            if field.init and field.default is dataclasses.MISSING:  # a method is listed and labelled by its defaults
                raise ValueError(f"option {field.name} of {cls.__qualname__} needs a default, and no factory of one")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return add


def available_methods() -> list[str]:
    """The names that `tango.prune` accepts, of pre-LLM and intra-LLM methods, sorted.

    Example:
        >>> tango.available_methods()
        ['dart', 'divprune', ..., 'visionzip']
    """
    return _names((Pruner, LayerPruner))


def available_pruners() -> list[str]:
    """The names of the pre-LLM methods, which `build_pruner` accepts, sorted.

    Example:
        >>> tango.available_pruners()
        [...'divprune', ..., 'visionzip']
    """
    return _names(Pruner)


def ready_pruners() -> list[str]:
    """Those of `available_pruners` that run with their defaults alone; a learned method needs weights."""
    return [name for name in available_pruners() if not hasattr(_METHODS[name], "weights")]


def available_layer_pruners() -> list[str]:
    """The names of the intra-LLM methods, which `build_layer_pruner` accepts, sorted.

    Example:
        >>> tango.available_layer_pruners()
        ['dart', 'fastv', ..., 'sparsevlm']
    """
    return _names(LayerPruner)


def available_tower_mergers() -> list[str]:
    """The names of the tower methods, which `tower=` of `tango.prune` accepts, sorted.

    Example:
        >>> tango.available_tower_mergers()
        ['earlytom-frames', 'earlytom-frames-release']
    """
    return _names(TowerMerger)


def _names(kind: type | tuple[type, ...]) -> list[str]:
    load_group(GROUP)
    return sorted(name for name, cls in _METHODS.items() if issubclass(cls, kind))


def method_class(name: str) -> type[Pruner] | type[LayerPruner]:
    """The class behind a name.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    return _class("method", name, (Pruner, LayerPruner))


def any_class(name: str) -> type[Pruner] | type[LayerPruner] | type[TowerMerger]:
    """The class behind a name, at whatever stage the method works.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    return _class("method", name, (Pruner, LayerPruner, TowerMerger))


def pruner_class(name: str) -> type[Pruner]:
    """The class behind the name of a pre-LLM method.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    return _class("method", name, Pruner)


def layer_pruner_class(name: str) -> type[LayerPruner]:
    """The class behind the name of an intra-LLM method.

    Raises:
        UnknownNameError: no such layer pruner; the message lists them.
    """
    return _class("layer pruner", name, LayerPruner)


def tower_merger_class(name: str) -> type[TowerMerger]:
    """The class behind the name of a tower method.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    return _class("tower method", name, TowerMerger)


def _class(what: str, name: str, kind: type | tuple[type, ...]) -> Any:
    if name not in _METHODS:
        load_group(GROUP)
    cls = _METHODS.get(name)
    if cls is None or not issubclass(cls, kind):
        raise UnknownNameError(what, name, _names(kind), load_group(GROUP))
    return cls


def build_pruner(name: str, /, **options: Any) -> Pruner:
    """Build a pre-LLM method from its name and its options, the fields of its class.

    Raises:
        UnknownNameError: unknown method or option; the message lists the known ones.
        BudgetError, ValueError: an option is out of range.
    Example:
        >>> tango.build_pruner("random", seed=7)
        RandomPruner(retention_ratio=0.1, exact_budget=False, seed=7)
    """
    return _built(pruner_class(name), options)


def build_layer_pruner(name: str, /, **options: Any) -> LayerPruner:
    """Build an intra-LLM method from its name and its options, the fields of its class.

    Raises:
        UnknownNameError: unknown layer pruner or option; the message lists the known ones.
        BudgetError, ValueError: an option is out of range.
    Example:
        >>> tango.build_layer_pruner("fastv", layer=3)
        FastvPruner(layer=3, retention_ratio=0.5)
    """
    return _built(layer_pruner_class(name), options)


def build_tower_merger(name: str, /, **options: Any) -> TowerMerger:
    """Build a tower method from its name and its options, the fields of its class.

    Raises:
        UnknownNameError: unknown method or option; the message lists the known ones.
        OptionError: an option is out of range.
    Example:
        >>> tango.build_tower_merger("earlytom-frames", blocks="4,14,20").after
        (4, 14, 20)
    """
    return _built(tower_merger_class(name), options)


def _built(cls: type[AnyMethod], options: Mapping[str, object]) -> AnyMethod:
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {cls.name}", option, known)
    return cls(**options)
