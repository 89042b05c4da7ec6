"""Names of methods. One class or preset, one name; unknown names and options fail with the list of known ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tango.errors import UnknownNameError
from tango.methods.base import LayerPruner, Pruner

_METHODS: dict[str, type[Pruner] | type[LayerPruner]] = {}

M = TypeVar("M", bound="type[Pruner] | type[LayerPruner]")


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a pruner or a layer pruner known by `name`.

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
    return sorted(_METHODS)


def available_pruners() -> list[str]:
    """Names that `build_pruner` accepts, the methods before the LLM, sorted."""
    return sorted(name for name, cls in _METHODS.items() if issubclass(cls, Pruner))


def available_layer_pruners() -> list[str]:
    """Names that `build_layer_pruner` accepts, the methods inside the LLM, sorted."""
    return sorted(name for name, cls in _METHODS.items() if issubclass(cls, LayerPruner))


def method_class(name: str) -> type[Pruner] | type[LayerPruner]:
    """The class behind a name.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    if name not in _METHODS:
        raise UnknownNameError("method", name, _METHODS)
    return _METHODS[name]


def pruner_class(name: str) -> type[Pruner]:
    """The class behind the name of a method before the LLM.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    cls = _METHODS.get(name)
    if cls is None or not issubclass(cls, Pruner):
        raise UnknownNameError("method", name, available_pruners())
    return cls


def layer_pruner_class(name: str) -> type[LayerPruner]:
    """The class behind a layer pruner's name.

    Raises:
        UnknownNameError: no such layer pruner; the message lists them.
    """
    cls = _METHODS.get(name)
    if cls is None or not issubclass(cls, LayerPruner):
        raise UnknownNameError("layer pruner", name, available_layer_pruners())
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
