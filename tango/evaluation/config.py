"""`MethodConfig`: a method and its options, before there is a model."""

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
from tango.methods.base import Method, Pruner
from tango.methods.plan import settled
from tango.methods.registry import any_class
from tango.ops.saliency import saliency_function

if TYPE_CHECKING:
    from torch import nn

    from tango.runtime.pruning import Pruning

_UNKNOWN = object()  # stands for the default of an unknown option


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A `Plan` in its written form, for journals, records and labels. It is checked here, before a model is loaded.

    Args:
        method: "none" (all tokens are kept), a name from `tango.available_pruners()`, or one from
            `tango.available_layer_pruners()`; with the latter all tokens enter the LLM, and `retention_ratio` is the
            mean over its layers.
        options: fields of the method, such as `retention_ratio`.
        layer_pruner: prune again inside the LLM; `layer_options` are its fields.
        mean_retention_ratio: in place of `retention_ratio`, the mean over the LLM's layers.
        tower: a tower method; `tower_options` are its fields.
        saliency, positions, reuse, keep_newlines, images: as in `tango.prune`. Whether the model has these positions,
            and images that can be pruned, is checked when it is pruned.
    Raises:
        UnknownNameError: no such method or option; the message lists the known ones.
        OptionError, BudgetError: options that exclude each other, or a value out of range.
    Example:
        >>> config = MethodConfig(method="tango", options={"retention_ratio": 0.1, "alpha": 2.0})
        >>> config.label
        'tango-r0.1-alpha2.0'
        >>> with config.apply(model) as pruning:
        ...     text = tango.answer(model, processor, "clip.mp4", "what color is plain")
    """

    method: str = "none"
    options: Mapping[str, object] = field(default_factory=dict)
    layer_pruner: str | None = None
    layer_options: Mapping[str, object] = field(default_factory=dict)
    mean_retention_ratio: float | None = None
    saliency: str | None = None
    positions: str | None = None
    reuse: bool | None = None
    tower: str | None = None
    tower_options: Mapping[str, object] = field(default_factory=dict)
    keep_newlines: bool | None = None
    images: bool | None = None
    plan: Plan = field(init=False, repr=False, compare=False)
    weights: Mapping[str, str] = field(
        init=False, repr=False, compare=False
    )  # by learned method, a hash of their content

    def __post_init__(self) -> None:
        for name in ("options", "layer_options", "tower_options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        plan = Plan.of(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.init})
        own: dict[str, object] = {"saliency": plan.saliency, "positions": plan.positions}
        own |= {"reuse": plan.reuse or None, "keep_newlines": plan.keep_newlines or None}
        own |= {"images": plan.images or None}
        for name, value in {"plan": plan, **own}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "weights", self._weights())

    def apply(self, model: nn.Module) -> AbstractContextManager[Pruning | None]:
        """Prune a model as `tango.prune` does; with "none" do nothing.

        Raises:
            TangoError: what `tango.prune` raises for this model.
        """
        if self.method == "none":
            return nullcontext()
        from tango.runtime.pruning import prune

        return prune(model, self.plan)

    def to_dict(self) -> dict[str, object]:
        """All settings as plain values, defaults included."""
        options, layer_options, mean = self._complete()
        return {
            "method": self.method,
            "options": options,
            "layer_pruner": self.layer_pruner,
            "layer_options": layer_options,
            "mean_retention_ratio": mean,
            "saliency": self.saliency,
            "positions": self.positions,
            **({"reuse": True} if self.reuse else {}),
            **({"keep_newlines": True} if self.keep_newlines else {}),
            **({"images": True} if self.images else {}),
            **({} if self.plan.tower is None else {"tower": self.tower, "tower_options": self.plan.tower.config()}),
        }

    def to_record(self) -> dict[str, object]:
        """`to_dict` as it stands in results: for learned methods with the hashes of their weights, as `weights`."""
        return {**self.to_dict(), "weights": dict(self.weights)} if self.weights else self.to_dict()

    def content(self) -> dict[str, dict[str, str]]:
        """What answers depend on besides `to_dict`: hashes of weights, and of other packages' code.

        Raises:
            OptionError: weights cannot be read, or have changed since this was made.
        """
        if (weights := self._weights()) != self.weights:
            raise OptionError(f"the weights of {', '.join(weights)} changed while this ran; start it again")
        sources = [*map(type, self._pruners()), saliency_function(self.plan.saliency)]
        found = {"weights": weights, "packages": of_packages(*sources)}
        return {name: value for name, value in found.items() if value}

    def _pruners(self) -> list[Method]:
        plan = self.plan
        return [pruner for pruner in (plan.tower, plan.pruner, plan.layer_pruner) if pruner is not None]

    def _weights(self) -> dict[str, str]:
        for pruner in self._pruners():
            pruner.check_weights()
        return {pruner.name: of_file(path) for pruner in self._pruners() if (path := getattr(pruner, "weights", None))}

    def _complete(self) -> tuple[dict[str, object], dict[str, object], float | None]:
        """All options of the method and of the layer pruner; and the mean, unless it is an option of the method."""
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

        It holds all options that differ from their defaults, so different configurations have different labels.
        """
        return label_of(self.to_record())

    @classmethod
    def from_settings(cls, *sources: Mapping[str, object], method: str = "none", release: bool = True) -> MethodConfig:
        """Read a configuration from flags, files and environment, as `tango.methods.Plan.parse` does."""
        return cls(**settled(*sources, method=method, release=release))

    @staticmethod
    def settings_from_environment(environ: Mapping[str, str]) -> dict[str, str]:
        """Find the settings in an environment: WRAPPER is the method, TANGO_<NAME> any other; empty ones do not count.

        TANGO_IMPORT is not a setting; see `tango.evaluation.import_packages`.
        """
        settings = {name[6:].lower(): value for name, value in environ.items() if name.startswith("TANGO_") and value}
        settings.pop("import", None)
        if environ.get("WRAPPER"):
            settings["wrapper"] = environ["WRAPPER"]
        return settings


def label_of(method: Mapping[str, Any], *, ratio: bool = True) -> str:
    """Make the label of a configuration in the form of `to_record`, without opening weights.

    If the method is not registered here, its defaults are unknown, and the label holds all options.

    Args:
        ratio: whether the label holds the retention ratio, or the mean over layers.

    Example:
        >>> tango.evaluation.label_of({"method": "tango", "options": {"retention_ratio": 0.1}})
        'tango-r0.1'
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
    usual = _usual(name)
    if method.get("saliency") not in (None, usual.default_saliency):
        parts.append(str(method["saliency"]))
    if (positions := method.get("positions")) != usual.default_positions:
        parts.append(str(positions or "model-positions"))
    if method.get("tower") is not None:
        parts.append(str(method["tower"]))
        parts += _differences(str(method["tower"]), method.get("tower_options") or {}, "", weights)
    parts += [flag for flag in ("reuse", "keep_newlines", "images") if method.get(flag)]
    known = {*(item.name for item in dataclasses.fields(MethodConfig)), "retention_ratio"}
    parts += [f"{key}{value}" for key, value in method.items() if key not in known]  # written by hand
    return "-".join(re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("_") for part in parts)


def _usual(name: str) -> type[Pruner]:
    """The class with the saliency and the positions that a method has where a run does not say."""
    try:
        kind = any_class(name)
    except UnknownNameError:
        return Pruner
    return kind if issubclass(kind, Pruner) else Pruner


def _differences(name: str, options: Mapping[str, object], but: str, weights: Mapping[str, str]) -> list[str]:
    """Label parts of the options that differ from their defaults; for a weights file, its content's hash."""
    try:
        defaults = {item.name: item.default for item in dataclasses.fields(any_class(name))}
    except UnknownNameError:
        defaults = {}
    differ = {key: value for key, value in options.items() if key != but and value != defaults.get(key, _UNKNOWN)}
    held = {"weights": weights[name][:8]} if name in weights else {}
    return [f"{key}{held.get(key, value)}" for key, value in differ.items()]
