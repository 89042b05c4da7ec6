"""The contract of a pruning method: a frozen configuration with one pure function."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from tango.containers import LayerTokens, Paper, PrunedTokens, Signal, VisualTokens, keep_all
from tango.errors import BudgetError, MissingSignalError, OptionError
from tango.ops.flops import mean_retention_ratio, solve_layer_ratio


def check_ratio(name: str, value: float) -> None:
    """Raise BudgetError unless 0 < value <= 1."""
    if not 0 < value <= 1:
        raise BudgetError(f"{name} must lie in (0, 1], got {value!r}. 0.1 keeps one token in ten")


Limits = dict[str, tuple[float, float]]


def check_options(options: Any) -> None:
    """Hold the fields of a dataclass against their annotations and its `limits`: they come from files and flags.

    Raises:
        OptionError: a value is of another type or out of range; the message says what is accepted.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if not any(_fits(value, kind) for kind in _alternatives(hint)):
            accepted = " or ".join(_describe(kind) for kind in _alternatives(hint))
            raise OptionError(f"{field.name} must be {accepted}, got {value!r}")
    for name, (low, high) in options.limits.items():
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and abs(value) < 2**63):  # beyond are infinity and slips
            raise OptionError(f"{name} must lie in [{low}, {high}], got {value!r}")


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
    return {type(None): "null (None)", float: "a number", int: "a whole number", bool: "true or false"}.get(
        kind, str(kind)
    )


@dataclass(frozen=True, kw_only=True)
class Pruner(ABC):
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
    paper: ClassVar[Paper]

    def __post_init__(self) -> None:
        check_options(self)
        check_ratio("retention_ratio", self.retention_ratio)

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
    paper: ClassVar[Paper] = Paper(title="-", venue="-")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        return keep_all(tokens)


@dataclass(frozen=True, kw_only=True)
class LayerPruner(ABC):
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
    paper: ClassVar[Paper]

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
