"""`Plan`: what prunes, and how, decided once; from names and options, or from text as it stands in flags and files."""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tango.errors import BudgetError, OptionError, TangoError, UnknownNameError
from tango.extensions import load_group
from tango.methods.base import KeepAllPruner, LayerPruner, Pruner, check_ratio, read_option
from tango.methods.registry import (
    GROUP,
    available_methods,
    build_layer_pruner,
    build_pruner,
    layer_pruner_class,
    method_class,
)
from tango.ops.saliency import saliency_function

log = logging.getLogger(__name__)

Positions = Literal["contiguous", "kept", "correct", "stock"]
# The release's names for ours.
ALIASES = {
    "wrapper": "method",
    "retain_ratio": "retention_ratio",
    "similarity_threshold": "segment_threshold",
    "segment_type": "segmentation",
}
# Flags with which the release tunes Tango. Its scripts pass them whatever the method is, so a method that has no such
# option does not see them; ratios and layers on the other hand mean the same to all methods.
_TUNING = ("similarity_threshold", "context_ratio", "alpha", "base_time", "base_space", "num_neighbors", "segment_type")
# What may be set beside the options of the method.
_OWN: dict[str, Any] = {
    "layer_pruner": str | None,
    "mean_retention_ratio": float | None,
    "saliency": str | None,
    "positions": Positions | None,
    "pruned_layer": int | None,
    "pre_retain_ratio": float | None,
}
_ONE_RATIO = {"retention_ratio": "mean_retention_ratio", "mean_retention_ratio": "retention_ratio"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What prunes the videos of a model that is not known yet. Methods are built once, here; `tango.prune` takes it.

    Args:
        pruner: before the LLM; all tokens pass where a method inside it works alone, or none does.
        layer_pruner: inside the LLM.
        mean: fraction kept on average over the LLM's layers, from which a ratio follows once their number is known:
            that of `pruner`, or where all tokens pass it, of `layer_pruner`. None: the ratios are as they are.
        saliency, positions: as in `tango.prune`.
    Example:
        >>> plan = Plan.parse({"method": "tango", "base_time": "1e4", "kernels": "off"})
        >>> with tango.prune(model, plan): ...
    """

    pruner: Pruner = dataclasses.field(default_factory=KeepAllPruner)
    layer_pruner: LayerPruner | None = None
    mean: float | None = None
    saliency: str = "p-attn"
    positions: str | None = None

    def __post_init__(self) -> None:
        saliency_function(self.saliency)
        read_option("positions", self.positions, Positions | None)

    @classmethod
    def parse(cls, *sources: Mapping[str, Any], method: str = "none", release: bool = False) -> Plan:
        """The plan that flags, files and environment describe together; earlier sources win.

        Values may be text, which means the same in all of them (see `read_option`). Names are those of the options or
        of the release's flags, with underscores or hyphens. Beside the fields of the method there are:

        * `method` or `wrapper`; "none": all tokens;
        * `retain_ratio` or `retention_ratio`, and in its place `mean_retention_ratio`: over the LLM's layers;
        * `layer_pruner`: prune again inside the LLM, with options `layer_<name>`;
        * `pruned_layer`: prune again at the input of this layer ("fastv-merge", or what `layer_pruner` says). The
          retention ratio is the mean then, as in the release, unless `pre_retain_ratio` says what enters the LLM;
        * `saliency`, `positions`: as in `tango.prune`.

        Args:
            method: if no source names one.
            release: read as the release's scripts mean it: tuning flags pass by methods that have no such option, and
                with any layer pruner the retention ratio is the mean.
        Raises:
            UnknownNameError: no such method or option; the message lists the known ones.
            OptionError, BudgetError: settings that do not go together; a value that means nothing or is out of range.
        """
        return cls.of(**settled(*sources, method=method, release=release))

    @classmethod
    def of(
        cls,
        method: str | Pruner | LayerPruner = "none",
        options: Mapping[str, Any] | None = None,
        *,
        layer_pruner: LayerPruner | str | None = None,
        layer_options: Mapping[str, Any] | None = None,
        mean_retention_ratio: float | None = None,
        saliency: str | None = None,
        positions: str | None = None,
    ) -> Plan:
        """The plan of a method, by name with its options or built already; the arguments are those of `tango.prune`.

        Raises:
            UnknownNameError, OptionError, BudgetError: as `parse`.
            TangoError: options for a method that is built already.
        """
        options, mean = dict(options or {}), mean_retention_ratio
        if layer_options and not isinstance(layer_pruner, str):
            raise OptionError(f"options of a layer pruner, but no layer_pruner: {', '.join(layer_options)}")
        if method == "none" and (options or any(value is not None for value in (layer_pruner, mean, positions))):
            raise OptionError(
                "method 'none' keeps all tokens; leave out ratio, options and positions, or name a method"
            )
        if mean is not None and "retention_ratio" in options:
            raise BudgetError(
                "give retention_ratio (before the LLM) or mean_retention_ratio (over its layers), not both"
            )
        given = [*options, *(["mean_retention_ratio"] if mean is not None else [])]
        if not isinstance(method, str) and given:
            raise TangoError(f"{method.name} is built already; its options cannot be changed: {', '.join(given)}")
        if isinstance(layer_pruner, str):
            layer_pruner = build_layer_pruner(layer_pruner, **(layer_options or {}))
        kind = method_kind(method) if isinstance(method, str) else type(method)
        inside = issubclass(kind, LayerPruner)
        if inside and layer_pruner is not None:
            raise OptionError(
                f"{kind.name} prunes inside the LLM already; leave out layer_pruner, or choose another method"
            )
        pruner: Pruner = KeepAllPruner()
        if isinstance(method, LayerPruner):
            layer_pruner = method
        elif isinstance(method, Pruner):
            pruner = method
        elif inside:
            mean = options.pop("retention_ratio", 0.1) if mean is None else mean
            KeepAllPruner(retention_ratio=mean)  # checks it; whether the LLM can have it depends on its depth
            layer_pruner = build_layer_pruner(method, **options)
        elif method != "none":
            pruner = build_pruner(method, **options, **({} if mean is None else {"retention_ratio": mean}))
        return cls(
            pruner=pruner,
            layer_pruner=layer_pruner,
            mean=mean,
            saliency=saliency or pruner.default_saliency,
            positions=positions or pruner.default_positions,
        )

    def pruners(self, num_layers: int) -> tuple[Pruner, LayerPruner | None]:
        """What prunes before the LLM and inside it, for an LLM of so many layers.

        Raises:
            BudgetError: the mean cannot be reached.
        """
        if self.mean is None:
            return self.pruner, self.layer_pruner
        if isinstance(self.pruner, KeepAllPruner) and self.layer_pruner is not None:
            return self.pruner, self.layer_pruner.for_mean(self.mean, num_layers)
        return self.pruner.for_mean(self.mean, num_layers, self.layer_pruner), self.layer_pruner


def method_kind(name: str) -> type[Pruner] | type[LayerPruner]:
    """The class behind a name; "none" keeps all tokens.

    Raises:
        UnknownNameError: no such method; the message lists them.
    """
    if name == "none":
        return KeepAllPruner
    try:
        return method_class(name)
    except UnknownNameError:
        raise UnknownNameError("method", name, ["none", *available_methods()], load_group(GROUP)) from None


def read_options(kind: type[Pruner] | type[LayerPruner], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a class with text read as their annotations say; names that are none of its stay as they are.

    Raises:
        OptionError: a value means nothing there.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    return {name: read_option(name, value, hints[name]) if name in known else value for name, value in given.items()}


def named_value(item: str, form: str = "NAME=VALUE", flag: str = "--option") -> tuple[str, str]:
    """Name and text of an option given as `NAME=VALUE`.

    Raises:
        OptionError: it has another form.
    """
    name, equals, value = item.partition("=")
    if not equals:
        raise OptionError(f"{flag} needs {form}, got {item!r}")
    return name, value


def settled(*sources: Mapping[str, Any], method: str = "none", release: bool = False) -> dict[str, Any]:
    """What `Plan.parse` makes of its sources, as arguments of `Plan.of`: every value read, no method built."""
    options, flags = _merged(sources)
    method = options.pop("method", method)
    kind = method_kind(method)
    fields = {field.name for field in dataclasses.fields(kind)}
    inside = issubclass(kind, LayerPruner)
    passing = (*_TUNING, "pruned_layer") if inside else _TUNING
    for name in [name for name in options if release and flags[name] in passing and name not in fields]:
        log.info("%s has no option %s; its value %r is not used", method, name, options.pop(name))
    own = {name: read_option(name, options.pop(name), hint) for name, hint in _OWN.items() if name in options}
    layer, pre = own.pop("pruned_layer", None), own.pop("pre_retain_ratio", None)
    if inside and (layer is not None or pre is not None):
        raise OptionError(f"{method} lets all tokens into the LLM; leave out pre_retain_ratio and pruned_layer")
    if layer is not None:
        own["layer_pruner"] = own.get("layer_pruner") or "fastv-merge"
        options["layer_layer"] = layer
    prefixed = [name for name in options if name.startswith("layer_") and name not in fields and not inside]
    layer_options = {name.removeprefix("layer_"): options.pop(name) for name in prefixed}
    options = read_options(kind, options)
    if own.get("layer_pruner") is not None:
        layer_options = read_options(layer_pruner_class(own["layer_pruner"]), layer_options)
        if method != "none" and not inside and (release or layer is not None or pre is not None):
            _split_ratio(kind, options, own, pre)
    elif pre is not None:
        raise OptionError("pre_retain_ratio needs pruned_layer: without it, retain_ratio is the ratio before the LLM")
    return {"method": method, "options": options, "layer_options": layer_options, **own}


def _split_ratio(kind: Any, options: dict[str, Any], own: dict[str, Any], pre: float | None) -> None:
    """With a layer pruner, the retention ratio is the mean; it then says what enters the LLM, unless `pre` does."""
    if own.get("mean_retention_ratio") is None:
        own["mean_retention_ratio"] = options.pop("retention_ratio", kind.retention_ratio)
    if pre is not None and "retention_ratio" not in options:
        mean = own.pop("mean_retention_ratio")
        check_ratio("retention_ratio", mean)
        options |= {"retention_ratio": pre, **kind.fixed_by_mean(mean, options)}


def _merged(sources: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings by our names, earlier sources first, and the name that each was given by.

    A ratio of an earlier source takes the place of a mean in a later one, and the other way round.
    """
    settings: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for source in reversed(sources):
        own: dict[str, str] = {}
        merged = dict(settings)
        for given, value in source.items():
            flag = given.replace("-", "_").lower()
            name = ALIASES.get(flag, flag)
            if name == "method" and value is None:
                continue
            if name == "method" and not isinstance(value, str):
                raise OptionError(f"{flag} must be a name, got {value!r:.200}")
            if name in own and str(merged[name]) != str(value):
                raise OptionError(f"{own[name]} and {flag} are one option, got {merged[name]!r} and {value!r}")
            if (other := _ONE_RATIO.get(name)) is not None and other not in own:
                merged.pop(other, None)
            merged[name], own[name] = value, flag
        settings, flags = merged, flags | own
    return settings, flags
