"""Names of methods. One class or preset, one name; unknown names and options fail with the list of known ones.

Methods of other people's packages are loaded when all names are asked for, or one that is not ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tango.errors import UnknownNameError
from tango.extensions import load_group
from tango.methods.base import LayerPruner, Pruner

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
        ValueError: the name is taken or not lower-case words joined by hyphens, or an option has no default.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a method's name must be lower-case words joined by hyphens, got {name!r}")
    if name in _METHODS:
        raise ValueError(f"method {name!r} is already registered by {_METHODS[name].__qualname__}")

    def add(cls: M) -> M:
        for field in dataclasses.fields(cls):
            if field.init and field.default is dataclasses.MISSING:  # else it could not be listed and labelled
                raise ValueError(f"option {field.name} of {cls.__qualname__} needs a default, and no factory of one")
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


def _check_options(cls: type, name: str, options: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
