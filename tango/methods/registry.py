"""Names of methods. One class or preset, one name; unknown names and options fail with the list of known ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

from tango.errors import UnknownNameError
from tango.methods.base import Pruner

_PRUNERS: dict[str, type[Pruner]] = {}

P = TypeVar("P", bound=Pruner)


def register(name: str) -> Callable[[type[P]], type[P]]:
    """Class decorator: make a pruner known by `name`.

    Raises:
        ValueError: the name is taken or not lower-case words joined by hyphens.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"a method's name must be lower-case words joined by hyphens, got {name!r}")
    if name in _PRUNERS:
        raise ValueError(f"method {name!r} is already registered by {_PRUNERS[name].__qualname__}")

    def add(cls: type[P]) -> type[P]:
        cls.name = name
        _PRUNERS[name] = cls
        return cls

    return add


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
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known)
    return cls(**options)
