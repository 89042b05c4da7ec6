"""Holds a value against a JSON Schema, of which `data/leaderboard.schema.json` uses a small part; no library is needed.

Only these keywords are known, and any other is refused, so that nothing in a schema goes unheeded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from tango.report.results import is_number, shown

Schema = Mapping[str, Any]

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": is_number,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
# Each holds for values of its own type alone, as in JSON Schema.
_LIMITS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, least: not is_number(value) or value >= least,
    "exclusiveMinimum": lambda value, bound: not is_number(value) or value > bound,
    "maximum": lambda value, most: not is_number(value) or value <= most,
    "minLength": lambda value, least: not isinstance(value, str) or len(value) >= least,
    "maxLength": lambda value, most: not isinstance(value, str) or len(value) <= most,
    "minItems": lambda value, least: not isinstance(value, list) or len(value) >= least,
    "maxItems": lambda value, most: not isinstance(value, list) or len(value) <= most,
    "pattern": lambda value, pattern: not isinstance(value, str) or _matches(pattern, value),
    # 1, 1.0 and true are one in Python, and not in JSON
    "const": lambda value, only: value == only and isinstance(value, bool) == isinstance(only, bool),
}
_WORDS = {"$schema", "title", "description"}
_PARTS = {"type", "required", "properties", "additionalProperties", "items"}


def mistakes(value: object, schema: Schema, name: str = "") -> Iterator[str]:
    """Yield one line for each place where a value is not as a schema says: what was got, what was expected.

    Args:
        schema: each part of it has a `description` that ends the sentence "expected ...".
        name: what the value is called; fields in it are `name.field`.
    Raises:
        ValueError: the schema uses a keyword that is not known here.
    Example:
        >>> accuracy = {"type": "number", "maximum": 100, "description": "a number up to 100, in percent"}
        >>> list(mistakes({"accuracy": 840}, {"type": "object", "properties": {"accuracy": accuracy}}))
        ['accuracy: got 840, expected a number up to 100, in percent']
    """
    if unknown := schema.keys() - _WORDS - _PARTS - _LIMITS.keys():
        raise ValueError(f"keywords of JSON Schema that are not known here: {', '.join(sorted(unknown))}")
    types = schema.get("type", list(_TYPES))
    fits = any(_TYPES[one](value) for one in ([types] if isinstance(types, str) else types))
    if not fits or not all(_LIMITS[word](value, schema[word]) for word in _LIMITS.keys() & schema.keys()):
        yield f"{name or 'the file'}: got {shown(value)}, expected {schema.get('description', 'an object')}"
    elif isinstance(value, dict):
        yield from _of_object(value, schema, name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from mistakes(item, schema.get("items", {}), f"{name}[{i}]")


def _of_object(value: dict[str, Any], schema: Schema, name: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)

    def of(field: str) -> str:
        return f"{name}.{_one_line(field)}" if name else _one_line(field)

    for field in schema.get("required", ()):
        if field not in value:
            yield f"{of(field)}: got nothing, expected {known[field].get('description', 'a value')}"
    for field, held in value.items():
        if field in known:
            yield from mistakes(held, known[field], of(field))
        elif others is False:
            close = get_close_matches(field, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{of(field)}: got a field of this name, expected one of {', '.join(known)}{hint}"
        elif others is not True:
            yield from mistakes(held, others, of(field))


def _one_line(field: str) -> str:
    return field if field.isprintable() and len(field) <= 60 else shown(field)


def _matches(pattern: str, value: str) -> bool:
    """JSON Schema's `$` is the very end, Python's may have a line end behind it."""
    return re.search(re.sub(r"\$$", r"\\Z", pattern), value) is not None


def parsed(text: str) -> Any:
    """Parse JSON strictly: no NaN, no Infinity, and no name twice in one object.

    Raises:
        ValueError: it is no such JSON.
    Example:
        >>> parsed('{"accuracy": 84.4, "accuracy": 99.9}')
        Traceback (most recent call last):
        ValueError: 'accuracy' stands twice in one object
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} stands twice in one object")
        return dict(pairs)

    def no_number(text: str) -> Any:
        raise ValueError(f"{text} is no number in JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
