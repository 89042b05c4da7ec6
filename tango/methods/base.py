"""The contract of a pruning method: a frozen configuration with one pure function."""

from __future__ import annotations

import copy
import dataclasses
import numbers
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tango.containers import LayerTokens, Paper, PrunedTokens, Signal, VisualTokens, keep_all
from tango.errors import BudgetError, MissingSignalError, OptionError, TangoError
from tango.ops.flops import mean_retention_ratio, solve_layer_ratio, solve_retention_ratio


def check_ratio(name: str, value: float) -> None:
    """Raise BudgetError unless 0 < value <= 1."""
    if not 0 < value <= 1:
        raise BudgetError(f"{name} must lie in (0, 1], got {value!r}. 0.1 keeps one token in ten")


Limits = dict[str, tuple[float, float]]
ByRatio = Mapping[str, Callable[[float], float]]  # by option: its value at a retention ratio
_TRUTH = {**dict.fromkeys(("true", "on", "yes", "1"), True), **dict.fromkeys(("false", "off", "no", "0"), False)}


def check_options(options: Any) -> None:
    """Hold the fields of a dataclass against their annotations and its `limits`.

    Raises:
        OptionError: a value is of another type or out of range; the message says what is accepted.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if not any(_fits(value, kind) for kind in _alternatives(hint)):
            raise _unfit(field.name, value, hint)
    for name, (low, high) in options.limits.items():
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and abs(value) < 2**63):  # beyond are infinity and slips
            raise OptionError(f"{name} must lie in [{low}, {high}], got {value!r}")


NULLS = ("~", "null", "none")  # texts for None


def read_option(name: str, value: Any, hint: Any) -> Any:
    """What a value from a flag, a file or the environment means where this annotation stands. Text becomes a value.

    None is `null`, `None`, `~` or empty; true is `true`, `on`, `yes` or `1`, and false their opposites; between the
    parts of a tuple stands `:` or `,`. Numbers are written as in Python; 7.0 is a whole one.

    Raises:
        OptionError: it means nothing there; the message says what is accepted.
    Example:
        >>> read_option("rope_sections", "1196:1194:1194", tuple[int, int, int] | None)
        (1196, 1194, 1194)
    """
    # A choice may be called "none", and any text is a text.
    for kind in sorted(_alternatives(hint), key=lambda kind: (kind is str, typing.get_origin(kind) is not Literal)):
        with suppress(ValueError, TypeError, KeyError):
            return _read(value, kind)
    raise _unfit(name, value, hint)


def _read(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        parts = re.split("[:,]", value.strip(" []()")) if isinstance(value, str) else value
        return tuple(_read(part, own) for part, own in zip(parts, typing.get_args(kind), strict=True))
    if isinstance(value, str) and kind is not str:
        text = value.strip()
        if typing.get_origin(kind) is typing.Literal:
            return {str(choice): choice for choice in typing.get_args(kind)}[text]
        if kind is type(None) and text.lower() in ("", *NULLS):
            return None
        if kind in (int, float):
            with suppress(ValueError):
                return int(text)
            return _read(float(text), kind)
    if kind is bool and isinstance(value, (int, str)):
        return _TRUTH[str(value).strip().lower()]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not _fits(value, kind):
        raise ValueError
    return value


def _unfit(name: str, value: Any, hint: Any) -> OptionError:
    accepted = " or ".join(_describe(kind) for kind in _alternatives(hint))
    return OptionError(f"{name} must be {accepted}, got {value!r:.200}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        return isinstance(value, (tuple, list)) and len(value) == len(parts) and all(map(_fits, value, parts))
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"{len(typing.get_args(kind))} numbers"
    words = {type(None): "null (None)", float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return words.get(kind, str(kind))


UNPUBLISHED = Paper(title="not published", venue="-")

L = TypeVar("L", bound="Learnable")


class Learnable:
    """What a method has at hand if it is learned: it declares the field `weights: str = ""`, a safetensors file.

    The file is read once, when `tango.prune` binds the pruner to a model. `config()` holds its path, and a journal the
    hash of its content.
    """

    name: ClassVar[str]

    def bind(self: L, model: Any) -> L:
        """The pruner that works on this model: itself or, with `weights`, a copy that has their tensors.

        Raises:
            OptionError: there is no such file, it is no safetensors file, or holds NaN or infinity.
        """
        if getattr(self, "weights", None) is None:
            return self
        bound = copy.copy(self)
        vars(bound)["_tensors"] = self._read(model.device)  # no field: options stay what they are, and JSON
        return bound

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of `weights` by name, in the file's dtypes, on the device of the model.

        Raises:
            TangoError: the pruner is not bound to a model.
        """
        if "_tensors" not in vars(self):
            raise TangoError(f"{self.name} has read no weights yet; tango.prune does it, or pruner.bind(model)")
        return vars(self)["_tensors"]

    def check_weights(self) -> None:
        """Look at the head of the file, before minutes of loading a model.

        Raises:
            OptionError: there is no such file, or it is no safetensors file.
        """
        if getattr(self, "weights", None) is not None:
            self._read(None)

    def _read(self, device: Any) -> dict[str, Tensor]:
        """The tensors; without a device, none of them."""
        path = getattr(self, "weights", "")
        if not path:
            raise OptionError(f"{self.name} is learned: give it a safetensors file, weights=PATH")
        try:
            with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
                tensors = {name: file.get_tensor(name) for name in ([] if device is None else file.keys())}
        except (OSError, SafetensorError) as error:
            raise OptionError(f"{self.name} needs a safetensors file as weights, got {path!r}: {error}") from error
        if broken := [name for name, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]:
            raise OptionError(f"{broken[0]} in the weights {path!r} of {self.name} holds NaN or infinity")
        return tensors


@dataclass(frozen=True, kw_only=True)
class Pruner(Learnable, ABC):
    """Reduces one video's visual tokens before the LLM. An instance is its configuration; it holds no run state.

    Calling a pruner checks the input, returns all tokens untouched at `retention_ratio` 1, and checks the output;
    `prune` is the method itself. Features stay differentiable; the choice of tokens does not.

    Raises:
        BudgetError: `retention_ratio` is outside (0, 1].
        MissingSignalError: a needed signal is absent (on the call).
    """

    retention_ratio: float = 0.10  # fraction KEPT, in (0, 1]
    exact_budget: bool = False  # keep exactly round(retention_ratio * T * N) tokens, a function of the shape alone

    name: ClassVar[str]  # set by @register
    limits: ClassVar[Limits] = {}  # of options, both ends included
    needs: ClassVar[Signal] = Signal.NONE  # an adapter computes only this, and refuses early by name
    budget_rule: ClassVar[str] = ""  # tokens kept, in words
    default_saliency: ClassVar[str] = "p-attn"  # of a model's choices, where a run names none
    default_positions: ClassVar[str | None] = None  # None: the model's own
    by_ratio: ClassVar[ByRatio] = {}  # options whose None goes by the retention ratio
    paper: ClassVar[Paper] = UNPUBLISHED

    def __post_init__(self) -> None:
        check_options(self)
        check_ratio("retention_ratio", self.retention_ratio)

    @classmethod
    def fixed_by_mean(cls, mean: float, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that are None and go by the ratio, at this mean over the LLM's layers.

        What enters the LLM is more than the mean where a layer pruner follows; as in the release, the mean decides.
        """
        return {name: rule(mean) for name, rule in cls.by_ratio.items() if options.get(name) is None}

    def for_mean(self, mean: float, num_layers: int, layer_pruner: LayerPruner | None = None) -> Pruner:
        """The same method with the ratio that keeps this fraction of visual tokens, averaged over the LLM's layers.

        Raises:
            BudgetError: even if all tokens enter the LLM, `layer_pruner` leaves less.
        Example:
            >>> build_pruner("tango").for_mean(0.1, 28, build_layer_pruner("fastv-merge")).retention_ratio
            0.1217...
        """
        share = 1.0 if layer_pruner is None else layer_pruner.mean_share(num_layers)
        ratio = solve_retention_ratio(mean, num_layers=num_layers) / share
        if ratio > 1:
            raise BudgetError(
                f"mean_retention_ratio {mean:.4g} is out of reach: if all visual tokens enter the LLM, pruning inside "
                f"it leaves {share:.4g}; prune later, or keep more there"
            )
        return dataclasses.replace(self, retention_ratio=ratio, **self.fixed_by_mean(mean, self.config()))

    @property
    def wants(self) -> Signal:
        """Signals that this configuration uses if the model has them; always includes `needs`."""
        return self.needs

    @abstractmethod
    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        """Choose and merge. Never writes into `tokens`, never draws from a global random generator."""

    def __call__(self, tokens: VisualTokens) -> PrunedTokens:
        if self.retention_ratio == 1:
            return keep_all(tokens)
        for kind in self.needs.kinds:
            if getattr(tokens, kind.field) is None:
                shape = ", ".join(kind.shape)
                raise MissingSignalError(f"{self.name} needs {kind.field} ({shape}); these tokens carry none")
        pruned = self.prune(tokens)
        K = len(pruned.indices)
        if K == 0 or pruned.features.shape != (K, tokens.features.shape[-1]):
            raise AssertionError(f"{self.name} returned features {tuple(pruned.features.shape)} for {K} indices")
        # On a GPU this check would synchronise, so the CPU tests vouch for it there.
        if pruned.indices.device.type == "cpu" and not bool((pruned.indices.diff() > 0).all()):
            raise AssertionError(f"{self.name} returned indices that do not strictly increase")
        return pruned

    def config(self) -> dict[str, Any]:
        """The options as a dictionary: `build_pruner(name, **config)` rebuilds an equal pruner."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class KeepAllPruner(Pruner):
    """All visual tokens enter the LLM: what methods that prune inside it start from. Registered under no name."""

    retention_ratio: float = 1.0

    name: ClassVar[str] = "none"

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        return keep_all(tokens)


@dataclass(frozen=True, kw_only=True)
class LayerPruner(Learnable, ABC):
    """Reduces visual tokens at the inputs of one or several decoder layers. A sibling of Pruner: it sees other things.

    Calling it checks the output, and returns all tokens untouched at `retention_ratio` 1. Hidden states stay
    differentiable; the choice of tokens does not.

    Raises:
        BudgetError: `retention_ratio` is outside (0, 1] or `layer` is below 1.
    """

    layer: int  # number of full layers that run before it
    retention_ratio: float = 0.5  # of the visual tokens that reach this layer

    name: ClassVar[str]  # set by @register
    limits: ClassVar[Limits] = {}  # of options, both ends included
    noncausal_layer: ClassVar[bool] = False  # the layer before `layer` reads the prompt without a causal mask
    reads: ClassVar[Literal["before", "own"]] = (
        "before"  # whose queries and keys: the layer before's, or the layer's own
    )
    budget_rule: ClassVar[str] = ""  # tokens kept, in words
    paper: ClassVar[Paper] = UNPUBLISHED

    def __post_init__(self) -> None:
        check_options(self)
        check_ratio("retention_ratio", self.retention_ratio)
        if self.layer < 1:
            raise BudgetError(f"layer must be at least 1 (the layers that see all tokens), got {self.layer}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers at whose inputs `prune` is called, increasing, `layer` first."""
        return (self.layer,)

    def for_mean(self, mean: float, num_layers: int) -> LayerPruner:
        """The same method with the ratio that keeps this fraction of visual tokens, averaged over the LLM's layers.

        All tokens enter the LLM.

        Raises:
            BudgetError: the layers that see all tokens alone are more than that.
        Source: eq. 1 of arXiv:2604.09547, solved for the ratio.
        """
        return dataclasses.replace(
            self, retention_ratio=solve_layer_ratio(mean, num_layers=num_layers, layer=self.layer)
        )

    def mean_share(self, num_layers: int) -> float:
        """Fraction of the visual tokens that enter the LLM which enters a layer, averaged over its layers.

        Raises:
            BudgetError: the LLM has no such layer.
        """
        return mean_retention_ratio(
            1.0, num_layers=num_layers, layer=self.layer, layer_retention_ratio=self.retention_ratio
        )

    @abstractmethod
    def prune(self, tokens: LayerTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose and merge. Never writes into its input, never draws from a global random generator.

        Returns:
            States (K, D) of the visual tokens that stay, and which of `tokens.visual` they are, (K,), strictly
            increasing.
        """

    def __call__(self, tokens: LayerTokens) -> tuple[torch.Tensor, torch.Tensor]:
        if self.retention_ratio == 1:
            return tokens.hidden[tokens.visual], torch.arange(len(tokens.visual), device=tokens.visual.device)
        states, indices = self.prune(tokens)
        if len(indices) == 0 or states.shape != (len(indices), tokens.hidden.shape[1]):
            raise AssertionError(f"{self.name} returned states {tuple(states.shape)} for {len(indices)} indices")
        # On a GPU this check would synchronise, so the CPU tests vouch for it there.
        if indices.device.type == "cpu" and not bool((indices.diff() > 0).all()):
            raise AssertionError(f"{self.name} returned indices that do not strictly increase")
        return states, indices

    def config(self) -> dict[str, Any]:
        """The options as a dictionary: `build_layer_pruner(name, **config)` rebuilds an equal one."""
        return dataclasses.asdict(self)
