"""Which pruning method with which options, before there is a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tango.errors import OptionError, UnknownNameError
from tango.fingerprints import of_file, of_packages
from tango.methods import Plan
from tango.methods.plan import method_kind, settled
from tango.ops.saliency import saliency_function

if TYPE_CHECKING:
    from tango.runtime.pruning import Pruning

_UNKNOWN = object()  # the default of an option that is not known here


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A `Plan` as it is written down: in journals, records and labels. Mistakes show before minutes of loading.

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
    saliency: str | None = None
    positions: str | None = None
    plan: Plan = field(init=False, repr=False, compare=False)
    weights: Mapping[str, str] = field(init=False, repr=False, compare=False)  # hashes of content, by learned method

    def __post_init__(self) -> None:
        for name in ("options", "layer_options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        plan = Plan.of(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init})
        for name, value in {"plan": plan, "saliency": plan.saliency, "positions": plan.positions}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "weights", self._weights())

    def apply(self, model: Any) -> AbstractContextManager[Pruning | None]:
        """Switch the method on, as `tango.prune` does; nothing for "none".

        Raises:
            TangoError: what `tango.prune` raises for this model.
        """
        if self.method == "none":
            return nullcontext()
        from tango.runtime.pruning import prune

        return prune(model, self.plan)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, defaults resolved."""
        options, layer_options, mean = self._complete()
        return {
            "method": self.method,
            "options": options,
            "layer_pruner": self.layer_pruner,
            "layer_options": layer_options,
            "mean_retention_ratio": mean,
            "saliency": self.saliency,
            "positions": self.positions,
        }

    def to_record(self) -> dict[str, Any]:
        """`to_dict` as results have it: of a learned method also what its weights held, as `weights` (by name)."""
        return {**self.to_dict(), "weights": dict(self.weights)} if self.weights else self.to_dict()

    def content(self) -> dict[str, Any]:
        """What answers depend on and `to_dict` does not hold: hashes of weights, and of other packages' code.

        Raises:
            OptionError: weights cannot be read, or are not those that were there when this was made.
        """
        if (weights := self._weights()) != self.weights:
            raise OptionError(f"the weights of {', '.join(weights)} changed while this ran; start it again")
        sources = [*map(type, self._pruners()), saliency_function(self.plan.saliency)]
        found = {"weights": weights, "packages": of_packages(*sources)}
        return {name: value for name, value in found.items() if value}

    def _pruners(self) -> list[Any]:
        return [pruner for pruner in (self.plan.pruner, self.plan.layer_pruner) if pruner is not None]

    def _weights(self) -> dict[str, str]:
        for pruner in self._pruners():
            pruner.check_weights()
        return {pruner.name: of_file(path) for pruner in self._pruners() if (path := getattr(pruner, "weights", None))}

    def _complete(self) -> tuple[dict[str, Any], dict[str, Any], float | None]:
        """All options of the method and of the layer pruner, and the mean, if it is not the method's own ratio."""
        plan = self.plan
        inside = {} if plan.layer_pruner is None else plan.layer_pruner.config()
        if self.method == "none":
            return {}, {}, None
        if self.layer_pruner is None and plan.layer_pruner is not None:
            return {**inside, "retention_ratio": plan.mean}, {}, None
        options = plan.pruner.config()
        if plan.mean is not None:
            del options["retention_ratio"]
        return options, inside, plan.mean

    @property
    def label(self) -> str:
        """A name for folders and tables, such as "tango-r0.1" or "tango-m0.1-fastv-merge18".

        Options that differ from their defaults are in it, so different configurations have different names.
        """
        return label_of(self.to_record())

    @classmethod
    def from_settings(cls, *sources: Mapping[str, Any], method: str = "none", release: bool = True) -> MethodConfig:
        """From flags, arguments, files and environment; see `tango.methods.Plan.parse`."""
        return cls(**settled(*sources, method=method, release=release))

    @staticmethod
    def settings_from_environment(environ: Mapping[str, str]) -> dict[str, str]:
        """The settings in an environment: WRAPPER is the method, TANGO_<NAME> any other; empty ones do not count.

        TANGO_IMPORT is none: see `tango.evaluation.import_packages`.
        """
        settings = {name[6:].lower(): value for name, value in environ.items() if name.startswith("TANGO_") and value}
        settings.pop("import", None)
        if environ.get("WRAPPER"):
            settings["wrapper"] = environ["WRAPPER"]
        return settings


def label_of(method: Mapping[str, Any], *, ratio: bool = True) -> str:
    """The label of a configuration as `to_record` has it, whether or not its method is known here.

    No weights are opened. Of a method that is not known, neither are its defaults, and all options are in the label.

    Args:
        ratio: whether the retention ratio, or the mean over layers, is in it.
    """
    name, options, layers = method["method"], method.get("options") or {}, method.get("layer_options") or {}
    weights, pruner, parts = method.get("weights") or {}, method.get("layer_pruner"), [str(name)]
    if name == "none":
        return "none"
    mean = method.get("mean_retention_ratio")
    if ratio:
        parts.append(f"r{options['retention_ratio']:g}" if mean is None else f"m{mean:g}")
    parts += _differences(name, options, "retention_ratio", weights)
    if pruner is not None:
        parts.append(f"{pruner}{layers.get('layer', '')}")
        parts += _differences(str(pruner), layers, "layer", weights)
    if method.get("saliency") not in (None, "p-attn"):
        parts.append(str(method["saliency"]))
    if method.get("positions") is not None:
        parts.append(str(method["positions"]))
    known = {*(item.name for item in dataclasses.fields(MethodConfig)), "retention_ratio"}
    parts += [f"{key}{value}" for key, value in method.items() if key not in known]  # written by hand
    return "-".join(re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("_") for part in parts)


def _differences(name: str, options: Mapping[str, Any], but: str, weights: Mapping[str, str]) -> list[str]:
    """Options that are not at their default, as parts of a label; of weights, which are a file, what it holds."""
    try:
        defaults = {item.name: item.default for item in dataclasses.fields(method_kind(name))}
    except UnknownNameError:
        defaults = {}
    differ = {key: value for key, value in options.items() if key != but and value != defaults.get(key, _UNKNOWN)}
    held = {"weights": weights[name][:8]} if name in weights else {}
    return [f"{key}{held.get(key, value)}" for key, value in differ.items()]
