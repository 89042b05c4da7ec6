"""`Plan`: which methods prune, and with which options; from names and values, or from the text of flags and files."""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tango.errors import BudgetError, OptionError, TangoError, UnknownNameError
from tango.extensions import load_group
from tango.methods.base import (
    NULLS,
    Hint,
    KeepAllPruner,
    LayerPruner,
    Method,
    Pruner,
    TowerMerger,
    check_ratio,
    read_option,
)
from tango.methods.registry import (
    GROUP,
    available_methods,
    build_layer_pruner,
    build_pruner,
    build_tower_merger,
    layer_pruner_class,
    method_class,
    tower_merger_class,
)
from tango.ops.saliency import saliency_function

log = logging.getLogger(__name__)

Positions = Literal["contiguous", "kept", "correct", "stock"]
# The release's name -> ours.
ALIASES = {
    "wrapper": "method",
    "retain_ratio": "retention_ratio",
    "similarity_threshold": "segment_threshold",
    "segment_type": "segmentation",
}
# Flags with which the release tunes Tango. Its scripts pass them to every method, so methods without such an option
# ignore them. Ratios and layers mean the same to all methods and are never ignored.
_TUNING = ("similarity_threshold", "context_ratio", "alpha", "base_time", "base_space", "num_neighbors", "segment_type")
# What may be set beside the options of the method -> its annotation.
_OWN: dict[str, Hint] = {
    "layer_pruner": str | None,
    "mean_retention_ratio": float | None,
    "saliency": str | None,
    "positions": Positions | None,
    "reuse": bool | None,
    "keep_newlines": bool | None,
    "images": bool | None,
    "tower": str | None,
    "pruned_layer": int | None,
    "pre_retain_ratio": float | None,
}
Given = list[tuple[str, str, Any]]  # the settings of one source: our name, the name that was given, the value
AnyClass = type[Pruner] | type[LayerPruner] | type[TowerMerger]
Stage = TypeVar("Stage", LayerPruner, TowerMerger)
_ONE_RATIO = {"retention_ratio": "mean_retention_ratio", "mean_retention_ratio": "retention_ratio"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The methods that `tango.prune` applies to a model, built with their options before the model is known.

    Args:
        pruner: the pre-LLM method; `KeepAllPruner` where an intra-LLM method works alone, or none does.
        layer_pruner: the intra-LLM method.
        mean: fraction of tokens kept on average over the LLM's layers. Once their number is known, it determines the
            ratio of `pruner` or, if that keeps all tokens, of `layer_pruner`. None: both ratios hold as they are.
        saliency, positions: as in `tango.prune`; left out: the method's own.
        reuse, keep_newlines, images: as in `tango.prune`.
        tower: the tower method; None: all frames pass through the whole tower.
    Example:
        >>> plan = tango.Plan.parse({"method": "tango", "mean_retention_ratio": "0.1", "layer_pruner": "fastv-merge"})
        >>> pruner, layer_pruner = plan.pruners(num_layers=28)
        >>> pruner.retention_ratio, layer_pruner.layer
        (0.1217..., 18)
        >>> with tango.prune(model, tango.Plan.of("uniform", {"retention_ratio": 0.25})):
        ...     text = tango.answer(model, processor, "clip.mp4", "What happens?")
    """

    pruner: Pruner = dataclasses.field(default_factory=KeepAllPruner)
    layer_pruner: LayerPruner | None = None
    mean: float | None = None
    saliency: str = ""
    positions: str | None = None
    reuse: bool = False
    tower: TowerMerger | None = None
    keep_newlines: bool = False
    images: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "saliency", self.saliency or self.pruner.default_saliency)
        object.__setattr__(self, "positions", self.positions or self.pruner.default_positions)
        saliency_function(self.saliency)
        read_option("positions", self.positions, Positions | None)
        if self.reuse and isinstance(self.pruner, KeepAllPruner) and self.layer_pruner is None:
            raise OptionError("reuse is for pruned models: with all tokens kept, results equal the stock model's bits")
        if self.tower is not None and (self.reuse or isinstance(self.pruner, KeepAllPruner)):
            reason = "reuse" if self.reuse else "all tokens kept before the LLM"
            raise OptionError(f"{self.tower.name} merges frames in the tower, which does not go with {reason}")
        if self.images:
            self._refuse_time()

    def _refuse_time(self) -> None:
        """Refuse to prune images by methods that are about time, which images do not have."""
        for method in (self.tower, self.pruner, self.layer_pruner):
            reason = "merges frames" if isinstance(method, TowerMerger) else method.about_time if method else ""
            if method and reason:
                raise OptionError(f"{method.name} {reason}, and images are not about time; leave out images=True")

    @classmethod
    def parse(cls, *sources: Mapping[str, object], method: str = "none", release: bool = False) -> Plan:
        """Build the plan that flags, files and the environment describe together; earlier sources win.

        Values may be text, which means the same in every source (see `read_option`). Names are those of the options or
        of the release's flags, with underscores or hyphens. A null counts as not given where the option cannot be None,
        and always for a ratio or a mean. Beside the options of the method, sources may contain:

        * `method` or `wrapper`: its name; "none" keeps all tokens;
        * `retain_ratio` or `retention_ratio`, or instead `mean_retention_ratio`, the mean over the LLM's layers;
        * `layer_pruner`: an intra-LLM method that prunes again, with options `layer_<name>`;
        * `pruned_layer`: the layer at whose input `layer_pruner`, by default "fastv-merge", prunes again. As in the
          release, the retention ratio is then the mean, unless `pre_retain_ratio` gives the pre-LLM ratio;
        * `tower`: a tower method, with options `tower_<name>`;
        * `saliency`, `positions`, `reuse`, `keep_newlines`, `images`: as in `tango.prune`;
        * `preset`: what the method's authors set for a model family. It stands for these settings, at the end of the
          source that names it: others of that source and of earlier ones win over them, those of later ones do not.

        Args:
            method: used if no source names one.
            release: read the sources as the release's scripts mean them: methods ignore tuning flags that they have no
                option for, and with any layer pruner the retention ratio is the mean.
        Raises:
            UnknownNameError: no such method or option; the message lists the known ones.
            OptionError, BudgetError: settings contradict each other; a value has no meaning or is out of range.
        """
        return cls.of(**settled(*sources, method=method, release=release))

    @classmethod
    def of(
        cls,
        method: str | Pruner | LayerPruner = "none",
        options: Mapping[str, Any] | None = None,
        *,
        layer_pruner: LayerPruner | str | None = None,
        layer_options: Mapping[str, object] | None = None,
        mean_retention_ratio: float | None = None,
        saliency: str | None = None,
        positions: str | None = None,
        reuse: bool | None = None,
        tower: TowerMerger | str | None = None,
        tower_options: Mapping[str, object] | None = None,
        keep_newlines: bool | None = None,
        images: bool | None = None,
        preset: str | None = None,
    ) -> Plan:
        """Build the plan of a method from its name and options, or from a built one; arguments as in `tango.prune`.

        Raises:
            UnknownNameError, OptionError, BudgetError: as in `parse`.
            TangoError: a built method is given with options.
        """
        if preset is not None:
            beside: dict[str, Any] = {"layer_pruner": layer_pruner, "saliency": saliency, "positions": positions}
            beside |= {"mean_retention_ratio": mean_retention_ratio, "reuse": reuse, "tower": tower}
            beside |= {"keep_newlines": keep_newlines, "images": images}
            stages = {"layer_": layer_options, "tower_": tower_options}
            return cls.of(**_preset_and(preset, method, options, beside, stages))
        options, mean = dict(options or {}), mean_retention_ratio
        tower = _stage("tower method", "tower", tower, tower_options, build_tower_merger)
        layer_pruner = _stage("layer pruner", "layer_pruner", layer_pruner, layer_options, build_layer_pruner)
        _refuse_clashes(method, options, mean, (layer_pruner, positions, reuse, keep_newlines, images, tower))
        kind = method_kind(method) if isinstance(method, str) else type(method)
        inside = issubclass(kind, LayerPruner)
        if inside and layer_pruner is not None:
            raise OptionError(
                f"{kind.name} prunes inside the LLM already; leave out layer_pruner, or choose another method"
            )
        pruner: Pruner = method if isinstance(method, Pruner) else KeepAllPruner()
        if isinstance(method, LayerPruner):
            layer_pruner = method
        elif isinstance(method, str) and inside:
            mean = options.pop("retention_ratio", 0.1) if mean is None else mean
            KeepAllPruner(retention_ratio=mean)  # checks the range; what can be reached depends on the LLM's depth
            layer_pruner = build_layer_pruner(method, **options)
        elif isinstance(method, str) and method != "none":
            pruner = build_pruner(method, **options, **({} if mean is None else {"retention_ratio": mean}))
        return cls(
            pruner=pruner,
            layer_pruner=layer_pruner,
            mean=mean,
            saliency=saliency or "",
            positions=positions,
            reuse=bool(reuse),
            keep_newlines=bool(keep_newlines),
            images=bool(images),
            tower=tower,
        )

    def pruners(self, num_layers: int) -> tuple[Pruner, LayerPruner | None]:
        """Return the pre-LLM and the intra-LLM method, with their ratios for an LLM of `num_layers` layers.

        Raises:
            BudgetError: the mean cannot be reached.
        """
        if self.mean is None:
            return self.pruner, self.layer_pruner
        if isinstance(self.pruner, KeepAllPruner) and self.layer_pruner is not None:
            return self.pruner, self.layer_pruner.for_mean(self.mean, num_layers)
        return self.pruner.for_mean(self.mean, num_layers, self.layer_pruner), self.layer_pruner


def _refuse_clashes(
    method: str | Pruner | LayerPruner, options: Mapping[str, object], mean: float | None, beside: tuple[object, ...]
) -> None:
    if method == "none" and (options or any(value is not None for value in (mean, *beside))):
        raise OptionError(
            "method 'none' keeps all tokens; leave out ratio, options, positions, reuse, keep_newlines, images and "
            "tower, or name a method"
        )
    if mean is not None and "retention_ratio" in options:
        raise BudgetError("give retention_ratio (pre-LLM) or mean_retention_ratio (over the LLM's layers), not both")
    given = [*options, *(["mean_retention_ratio"] if mean is not None else [])]
    if not isinstance(method, str) and given:
        raise TangoError(f"{method.name} is built already; its options cannot be changed: {', '.join(given)}")


def _stage(
    what: str, flag: str, given: Stage | str | None, options: Mapping[str, object] | None, build: Callable[..., Stage]
) -> Stage | None:
    """The method of a stage beside the main one: built from its name and options, or as it is given."""
    if options and not isinstance(given, str):
        raise OptionError(f"options of a {what}, but no {flag}: {', '.join(options)}")
    return build(given, **(options or {})) if isinstance(given, str) else given


def _preset_and(
    preset: str,
    method: str | Pruner | LayerPruner,
    options: Mapping[str, object] | None,
    beside: dict[str, Any],
    stages: Mapping[str, Mapping[str, object] | None],
) -> dict[str, Any]:
    """Arguments of `Plan.of`, with what a preset stands for among them. `stages` are options by their prefix."""
    if not isinstance(method, str):
        raise TangoError(f"{method.name} is built already; for the preset {preset!r} give the method's name")
    built = {name: beside.pop(name) for name in ("layer_pruner", "tower") if isinstance(beside[name], Method)}
    if clash := sorted(built.keys() & preset_of(method_kind(method), preset).keys()):
        raise OptionError(f"the preset {preset!r} has a {clash[0]} of its own; give yours by its name, or no preset")
    given = {name: value for name, value in beside.items() if value is not None}
    given |= {prefix + name: value for prefix, own in stages.items() for name, value in (own or {}).items()}
    return {**settled({"method": method, "preset": preset, **(options or {}), **given}), **built}


def preset_of(kind: AnyClass, name: str) -> Mapping[str, object]:
    """The settings that a preset of a method stands for.

    Raises:
        UnknownNameError: the method has no such preset; the message lists those that it has.
    Example:
        >>> preset_of(tango.FastVidPruner, "llava-video")
        {'rule': 'segment'}
    """
    if name not in kind.presets:
        raise UnknownNameError(f"preset of {kind.name}", name, ["none", *kind.presets])
    return kind.presets[name]


def method_kind(name: str) -> AnyClass:
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


def read_options(kind: AnyClass, given: Mapping[str, object]) -> dict[str, object]:
    """Convert values, often text, to the types of a class's options; unknown names keep their values.

    Raises:
        OptionError: a value has no meaning for its option.
    Example:
        >>> read_options(tango.TangoPruner, {"alpha": "2", "kernels": "off"})
        {'alpha': 2, 'kernels': False}
    """
    hints = _hints(kind)
    return {name: read_option(name, value, hints[name]) if name in hints else value for name, value in given.items()}


def named_value(item: str, form: str = "NAME=VALUE", flag: str = "--option") -> tuple[str, str]:
    """Split `NAME=VALUE`, as an option is given on the command line, into name and text.

    Raises:
        OptionError: the item has another form.
    Example:
        >>> named_value("alpha=2")
        ('alpha', '2')
    """
    name, equals, value = item.partition("=")
    if not equals:
        raise OptionError(f"{flag} needs {form}, got {item!r}")
    return name, value


def settled(*sources: Mapping[str, object], method: str = "none", release: bool = False) -> dict[str, Any]:
    """Turn the sources of `Plan.parse` into arguments of `Plan.of`: all values are read, no method is built."""
    given = [_named(source) for source in sources]
    method = next((value for source in given for name, _, value in source if name == "method"), method)
    kind = method_kind(method)
    given = _with_preset(given, kind)
    options, flags = _merged(_without_nulls(given, kind))
    options.pop("method", None)
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
        options.setdefault("layer_layer", layer)
    towers = [name for name in options if name.startswith("tower_") and name not in fields]
    tower_options = {name.removeprefix("tower_"): options.pop(name) for name in towers}
    if own.get("tower") is not None:
        tower_options = read_options(tower_merger_class(own["tower"]), tower_options)
    prefixed = [name for name in options if name.startswith("layer_") and name not in fields and not inside]
    layer_options = {name.removeprefix("layer_"): options.pop(name) for name in prefixed}
    options = read_options(kind, options)
    if own.get("layer_pruner") is not None:
        layer_options = read_options(layer_pruner_class(own["layer_pruner"]), layer_options)
        if method != "none" and issubclass(kind, Pruner) and (release or layer is not None or pre is not None):
            _split_ratio(kind, options, own, pre)
    elif pre is not None:
        raise OptionError("pre_retain_ratio needs pruned_layer: without it, retain_ratio is the pre-LLM ratio")
    own |= {"tower_options": tower_options} if tower_options else {}
    return {"method": method, "options": options, "layer_options": layer_options, **own}


def _split_ratio(kind: type[Pruner], options: dict[str, object], own: dict[str, Any], pre: float | None) -> None:
    """Take the retention ratio beside a layer pruner for the mean; with `pre`, use that before the LLM."""
    if own.get("mean_retention_ratio") is None:
        own["mean_retention_ratio"] = options.pop("retention_ratio", kind.retention_ratio)
    if pre is not None and "retention_ratio" not in options:
        mean = own.pop("mean_retention_ratio")
        check_ratio("retention_ratio", mean)
        options |= {"retention_ratio": pre, **kind.fixed_by_mean(mean, options)}


def _with_preset(sources: Sequence[Given], kind: AnyClass) -> list[Given]:
    """The sources with the settings of the first preset that they name, right after the source that names it."""
    expanded: list[Given] = []
    found = False
    for source in sources:
        named = [value for name, _, value in source if name == "preset"]
        expanded.append([item for item in source if item[0] != "preset"])
        if named and not found:
            found, preset = True, read_option("preset", named[0], str | None)
            settings = [] if preset is None else _named(preset_of(kind, preset))
            expanded.append(_beside(settings, {name: value for own in expanded for name, _, value in own}))
    return expanded


def _beside(preset: Given, given: Mapping[str, object]) -> Given:
    """The settings of a preset without the options of a stage for which the user gives another method, or none."""
    own = {name: value for name, _, value in preset}
    for stage, options in (("layer_pruner", ("layer_", "pruned_layer")), ("tower", ("tower",))):
        if stage in given and given[stage] != own.get(stage):
            preset = [item for item in preset if not item[0].startswith(options)]
    return preset


def _merged(sources: Sequence[Given]) -> tuple[dict[str, object], dict[str, str]]:
    """Merge the sources, of which earlier ones win: our name -> value, and our name -> the name that was given.

    A ratio in an earlier source replaces a mean in a later one, and the other way round.
    """
    settings: dict[str, object] = {}
    flags: dict[str, str] = {}
    for source in reversed(sources):
        own: dict[str, str] = {}
        merged = dict(settings)
        for name, flag, value in source:
            if name in own and str(merged[name]) != str(value):
                raise OptionError(f"{own[name]} and {flag} are one option, got {merged[name]!r} and {value!r}")
            if (other := _ONE_RATIO.get(name)) is not None and other not in own:
                merged.pop(other, None)
            merged[name], own[name] = value, flag
        settings, flags = merged, flags | own
    return settings, flags


def _named(source: Mapping[str, object]) -> Given:
    """The settings of a source with our names; a method that is None counts as not given."""
    named = []
    for given, value in source.items():
        flag = given.replace("-", "_").lower()
        name = ALIASES.get(flag, flag)
        if name == "method" and value is None:
            continue
        if name == "method" and not isinstance(value, str):
            raise OptionError(f"{flag} must be a name, got {value!r:.200}")
        named.append((name, flag, value))
    return named


def _without_nulls(sources: Sequence[Given], kind: AnyClass) -> list[Given]:
    """The sources without those nulls that count as not given."""
    hints = _OWN | _hints(kind)
    named = [item for source in sources for item in source]
    inside = [value for name, _, value in named if name == "layer_pruner" and not _null(value)] or ["fastv-merge"]
    if any(name not in hints and name.startswith("layer_") and _null(value) for name, _, value in named):
        hints = {f"layer_{name}": hint for name, hint in _hints(layer_pruner_class(inside[0])).items()} | hints
    return [
        [item for item in source if not (item[0] in hints and _says_nothing(item[0], item[2], hints[item[0]]))]
        for source in sources
    ]


def _hints(kind: AnyClass) -> dict[str, Hint]:
    """Option -> its annotation."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _says_nothing(name: str, value: object, hint: Hint) -> bool:
    """Whether a value is a null that counts as not given: the option cannot be None, or is a ratio or a mean."""
    try:
        return read_option(name, value, hint) is None and name in _ONE_RATIO
    except OptionError:
        return _null(value)


def _null(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in NULLS)
