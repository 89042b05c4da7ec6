"""Which pruning method with which options, before there is a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tango.errors import BudgetError, OptionError, UnknownNameError
from tango.methods import available_layer_pruners, available_pruners, build_layer_pruner, build_pruner
from tango.ops.saliency import saliency_function

if TYPE_CHECKING:
    from tango.pruning import Pruning

POSITIONS = ("contiguous", "kept", "correct", "stock")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A pruning method with its options. Mistakes show at construction, before minutes of loading.

    Args:
        method: "none" (all tokens), a name from `tango.available_pruners()`, or one from
            `tango.available_layer_pruners()`: then all tokens enter the LLM, and `retention_ratio` is the mean over
            its layers.
        options: fields of the method, such as `retention_ratio`.
        layer_pruner: prune again inside the LLM; `layer_options` are its fields.
        mean_retention_ratio: in place of `retention_ratio`, the mean over the LLM's layers.
        saliency, positions: as in `tango.prune`; whether a model has these positions shows when it is pruned.
    Raises:
        UnknownNameError: no such method or option; the message lists the known ones.
        OptionError, BudgetError: options that do not go together, or a value out of range.
    """

    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    layer_pruner: str | None = None
    layer_options: Mapping[str, Any] = field(default_factory=dict)
    mean_retention_ratio: float | None = None
    saliency: str = "p-attn"
    positions: Literal["contiguous", "kept", "correct", "stock"] | None = None

    def __post_init__(self) -> None:
        for name in ("options", "layer_options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        self._resolved()

    def _resolved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All options of the method and of the layer pruner, defaults included, after every check."""
        saliency_function(self.saliency)
        if self.positions not in (None, *POSITIONS):
            raise OptionError(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.method not in ("none", *available_pruners(), *available_layer_pruners()):
            raise UnknownNameError("method", self.method, ["none", *available_pruners(), *available_layer_pruners()])
        inside = [self.layer_pruner, self.mean_retention_ratio]
        if self.layer_pruner is None and self.layer_options:
            raise OptionError(f"options of a layer pruner, but no layer_pruner: {', '.join(self.layer_options)}")
        if self.method == "none" and (self.options or any(value is not None for value in (*inside, self.positions))):
            raise OptionError(
                "method 'none' keeps all tokens; leave out ratio, options and positions, or name a method"
            )
        layer_options = {} if self.layer_pruner is None else _built(self.layer_pruner, self.layer_options, layer=True)
        if self.method == "none":
            return {}, layer_options
        if self.method not in available_pruners():
            if any(value is not None for value in inside):
                raise OptionError(f"{self.method} prunes inside the LLM by itself; its retention_ratio is the mean")
            return _built_inside(self.method, self.options), layer_options
        mean = self.mean_retention_ratio
        if mean is None:
            return _built(self.method, self.options), layer_options
        if "retention_ratio" in self.options:
            raise BudgetError(
                "give retention_ratio (before the LLM) or mean_retention_ratio (over its layers), not both"
            )
        options = _built(self.method, {**self.options, "retention_ratio": mean})
        return {name: value for name, value in options.items() if name != "retention_ratio"}, layer_options

    def apply(self, model: Any) -> AbstractContextManager[Pruning | None]:
        """Switch the method on, as `tango.prune` does; nothing for "none".

        Raises:
            TangoError: what `tango.prune` raises for this model.
        """
        if self.method == "none":
            return nullcontext()
        from tango.pruning import prune

        inside: dict[str, Any] = {}
        if self.layer_pruner is not None:
            inside["layer_pruner"] = build_layer_pruner(self.layer_pruner, **self.layer_options)
        if self.mean_retention_ratio is not None:
            inside["mean_retention_ratio"] = self.mean_retention_ratio
        return prune(model, self.method, saliency=self.saliency, positions=self.positions, **inside, **self.options)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, defaults resolved."""
        options, layer_options = self._resolved()
        return {
            "method": self.method,
            "options": options,
            "layer_pruner": self.layer_pruner,
            "layer_options": layer_options,
            "mean_retention_ratio": self.mean_retention_ratio,
            "saliency": self.saliency,
            "positions": self.positions,
        }

    @property
    def label(self) -> str:
        """A name for folders and tables, such as "tango-r0.1" or "tango-m0.1-fastv-merge18".

        Options that differ from their defaults are in it, so different configurations have different names.
        """
        options, layer_options = self._resolved()
        if self.method == "none":
            return "none"
        parts = [self.method]
        if self.mean_retention_ratio is not None:
            parts.append(f"m{self.mean_retention_ratio:g}")
        else:
            parts.append(f"r{options['retention_ratio']:g}")
        defaults = _built(self.method, {}) if self.method in available_pruners() else _built_inside(self.method, {})
        parts += _differences(options, defaults, but=("retention_ratio",))
        if self.layer_pruner is not None:
            parts.append(f"{self.layer_pruner}{layer_options['layer']}")
            parts += _differences(layer_options, _built(self.layer_pruner, {}, layer=True), but=("layer",))
        if self.saliency != "p-attn":
            parts.append(self.saliency)
        if self.positions is not None:
            parts.append(self.positions)
        return "-".join(re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("_") for part in parts)

    @classmethod
    def from_settings(cls, *sources: Mapping[str, Any]) -> MethodConfig:
        """From flags, arguments and environment; see `tango.evaluation.settings.method_from`."""
        from tango.evaluation.settings import method_from

        return method_from(*sources)

    @staticmethod
    def settings_from_environment(environ: Mapping[str, str]) -> dict[str, str]:
        """The settings in an environment: WRAPPER is the method, TANGO_<NAME> any other; empty ones do not count."""
        settings = {name[6:].lower(): value for name, value in environ.items() if name.startswith("TANGO_") and value}
        if environ.get("WRAPPER"):
            settings["wrapper"] = environ["WRAPPER"]
        return settings


def _built(name: str, options: Mapping[str, Any], *, layer: bool = False) -> dict[str, Any]:
    """All options of a pruner, checked by building it."""
    pruner = build_layer_pruner(name, **options) if layer else build_pruner(name, **options)
    return pruner.config()


def _built_inside(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method inside the LLM that is used by itself: its ratio is the mean over the LLM's layers."""
    given = dict(options)
    mean = given.pop("retention_ratio", 0.1)
    built = build_layer_pruner(name, **given).config()
    build_pruner("uniform", retention_ratio=mean)  # checks it; whether the LLM can have it depends on its depth
    return {**built, "retention_ratio": mean}


def _differences(options: Mapping[str, Any], defaults: Mapping[str, Any], but: tuple[str, ...]) -> list[str]:
    """Options that are not at their default, as parts of a label."""
    return [f"{name}{value}" for name, value in options.items() if name not in but and value != defaults[name]]
