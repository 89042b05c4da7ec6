"""From loose settings (flags, a toolkit's model arguments, an environment) to one checked configuration."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from tango.errors import OptionError, UnknownNameError
from tango.evaluation.config import MethodConfig
from tango.methods import (
    available_layer_pruners,
    available_pruners,
    build_pruner,
    layer_pruner_class,
    pruner_class,
)

log = logging.getLogger(__name__)

# The release's names for ours.
ALIASES = {
    "wrapper": "method",
    "retain_ratio": "retention_ratio",
    "similarity_threshold": "segment_threshold",
    "segment_type": "segmentation",
}
# Flags with which the release tunes Tango. Its scripts pass them whatever the method is, so a method that has no such
# option does not see them; ratios and layers on the other hand mean the same to all methods.
TUNING = ("similarity_threshold", "context_ratio", "alpha", "base_time", "base_space", "num_neighbors", "segment_type")
_OWN = ("layer_pruner", "mean_retention_ratio", "saliency", "positions")


def method_from(*sources: Mapping[str, Any]) -> MethodConfig:
    """The configuration that the sources describe together; earlier sources win, None does not count.

    Names are those of the options or of the release's flags, with underscores or hyphens; values may be text. Text
    "null" stands for None, and "1196:1194:1194" for a list. Beside the fields of the method there are:

    * `method` or `wrapper`, by default "none";
    * `retain_ratio` or `retention_ratio`: with a pruner inside the LLM, the mean over the LLM's layers;
    * `pruned_layer`: prune again at the input of this layer ("fastv-merge", or what `layer_pruner` says); methods
      inside the LLM have an option `layer` instead, and do not see it;
    * `pre_retain_ratio`: the fraction kept before the LLM, where it is not to be solved from `retain_ratio`;
    * `layer_<name>`: options of the layer pruner;
    * `mean_retention_ratio`, `saliency`, `positions`: as in `MethodConfig`.

    Raises:
        UnknownNameError, OptionError, BudgetError: as `MethodConfig`, or one option is set twice in a source.
    """
    settings: dict[str, Any] = {}
    tuning: set[str] = set()
    for source in reversed(sources):
        given = _renamed(source)
        tuning = (tuning - given.keys()) | {name for name, (_, flag) in given.items() if flag in TUNING}
        settings.update({name: value for name, (value, _) in given.items()})
    method = str(settings.pop("method", None) or "none")
    known = ["none", *available_pruners(), *available_layer_pruners()]
    if method not in known:
        raise UnknownNameError("method", method, known)
    fields = _fields(method)
    for name in [name for name in settings if name in tuning and name not in fields]:
        log.info("%s has no option %s; its value %r is not used", method, name, settings.pop(name))
    pre, layer = settings.pop("pre_retain_ratio", None), settings.pop("pruned_layer", None)
    if method in available_layer_pruners() and method not in available_pruners():
        if pre is not None:
            raise OptionError(f"{method} lets all tokens into the LLM; leave out pre_retain_ratio")
        if layer is not None:
            log.info("%s prunes inside the LLM by itself; pruned_layer %r is not used", method, layer)
        return MethodConfig(method=method, **_own(settings), options=settings)
    if layer is not None:
        settings.setdefault("layer_pruner", "fastv-merge")
        settings["layer_layer"] = layer
    own = _own(settings)
    inside = {name: settings.pop(name) for name in list(settings) if name.startswith("layer_") and name not in fields}
    own["layer_options"] = {name.removeprefix("layer_"): value for name, value in inside.items()}
    if own.get("layer_pruner") is None:
        if pre is not None:
            raise OptionError(
                "pre_retain_ratio needs pruned_layer: without it, retain_ratio is the ratio before the LLM"
            )
    elif method != "none" and "mean_retention_ratio" not in own:
        _split_ratio(method, settings, own, pre)
    return MethodConfig(method=method, **own, options=settings)


def _split_ratio(method: str, options: dict[str, Any], own: dict[str, Any], pre: float | None) -> None:
    """With a layer pruner, `retention_ratio` is the mean; it then says what enters the LLM, unless `pre` does.

    A segment threshold that depends on the ratio goes by the mean in either case, as in the release.
    """
    mean = options.pop("retention_ratio", pruner_class(method).retention_ratio)
    if pre is None:
        own["mean_retention_ratio"] = mean
        return
    threshold = getattr(
        build_pruner(method, **{**options, "retention_ratio": mean}), "resolved_segment_threshold", None
    )
    if threshold is not None:
        options["segment_threshold"] = threshold
    options["retention_ratio"] = pre


def _renamed(source: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Settings by our names, each with its parsed value and the name that it was given by."""
    found: dict[str, tuple[Any, str]] = {}
    for given, value in source.items():
        flag = given.replace("-", "_").lower()
        name = ALIASES.get(flag, flag)
        if value is None:
            continue
        value = _parsed(value)
        if name in found and found[name][0] != value:
            raise OptionError(f"{found[name][1]} and {flag} are one option, got {found[name][0]!r} and {value!r}")
        found[name] = (value, flag)
    return found


def _parsed(value: Any) -> Any:
    """The value that a text stands for; anything else as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"\d+(:\d+)+", text):
        return [int(part) for part in text.split(":")]
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text


def _fields(method: str) -> set[str]:
    if method == "none":
        return set()
    cls: type = pruner_class(method) if method in available_pruners() else layer_pruner_class(method)
    return set(cls.__dataclass_fields__)  # type: ignore[attr-defined]


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Take out what is no option of the method."""
    return {name: value for name in _OWN if (value := settings.pop(name, None)) is not None}
