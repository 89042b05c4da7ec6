"""The contract of a pruning method: frozen options and one pure function."""

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
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tango.containers import LayerTokens, Paper, PrunedTokens, Signal, TowerFrames, VisualTokens, keep_all
from tango.errors import BudgetError, MissingSignalError, OptionError, TangoError
from tango.ops.flops import mean_retention_ratio, solve_layer_ratio, solve_retention_ratio


def check_ratio(name: str, value: float) -> None:
    """Raise BudgetError unless 0 < value <= 1."""
    if not 0 < value <= 1:
        raise BudgetError(f"{name} must lie in (0, 1], got {value!r}. 0.1 keeps one token in ten")


Limits = dict[str, tuple[float, float]]  # option -> its least and its largest value
ByRatio = Mapping[str, Callable[[float], float]]  # option -> its value at a retention ratio
Presets = Mapping[str, Mapping[str, object]]  # model family, such as "llava-onevision" -> settings by name
Hint = Any  # what an annotation may be: a class, a union, Literal[...] or tuple[...]
_TRUTH = {**dict.fromkeys(("true", "on", "yes", "1"), True), **dict.fromkeys(("false", "off", "no", "0"), False)}


def check_options(options: Method) -> None:
    """Check the options of a method against their annotations and `limits`.

    Raises:
        OptionError: a value has another type or is out of range; the message says what is accepted.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if not any(_fits(value, kind) for kind in _alternatives(hint)):
            raise _unfit(field.name, value, hint)
    for name, (low, high) in options.limits.items():
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and abs(value) < 2**63):  # nobody means infinity or more
            raise OptionError(f"{name} must lie in [{low}, {high}], got {value!r}")


NULLS = ("~", "null", "none")  # texts for None


def read_option(name: str, value: object, hint: Hint) -> Any:
    """Convert a value from a flag, a file or the environment, often text, to the type that an option is annotated with.

    None is written `null`, `None`, `~` or as empty text; true as `true`, `on`, `yes` or `1`, false as their opposites;
    the parts of a tuple are separated by `:` or `,`. Numbers are written as in Python; 7.0 counts as a whole number.

    Raises:
        OptionError: the value has no meaning for this type; the message says what is accepted.
    Example:
        >>> read_option("rope_sections", "1196:1194:1194", tuple[int, int, int] | None)
        (1196, 1194, 1194)
    """
    # Literals first, as a choice may be called "none"; str last, as it accepts any text.
    for kind in sorted(_alternatives(hint), key=lambda kind: (kind is str, typing.get_origin(kind) is not Literal)):
        with suppress(ValueError, TypeError, KeyError):
            return _read(value, kind)
    raise _unfit(name, value, hint)


def _read(value: Any, kind: Hint) -> object:
    if typing.get_origin(kind) is tuple:
        parts = re.split("[:,]", value.strip(" []()")) if isinstance(value, str) else value
        own, *rest = typing.get_args(kind)
        if rest == [...]:  # any number; none at all is written []
            return () if value in ("[]", "()") else tuple(_read(part, own) for part in parts)
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


def _unfit(name: str, value: object, hint: Hint) -> OptionError:
    accepted = " or ".join(_describe(kind) for kind in _alternatives(hint))
    return OptionError(f"{name} must be {accepted}, got {value!r:.200}")


def _alternatives(hint: Hint) -> tuple[Hint, ...]:
    """The members of a union; any other annotation alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: object, kind: Hint) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[1:] == (...,):
            return isinstance(value, (tuple, list)) and all(_fits(part, parts[0]) for part in value)
        return isinstance(value, (tuple, list)) and len(value) == len(parts) and all(map(_fits, value, parts))
    return isinstance(value, kind)


def _describe(kind: Hint) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "numbers" if ... in typing.get_args(kind) else f"{len(typing.get_args(kind))} numbers"
    words = {type(None): "null (None)", float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return words.get(kind, str(kind))


UNPUBLISHED = Paper(title="not published", venue="-")

BoundMethod = TypeVar("BoundMethod", bound="Method")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What pre-LLM and intra-LLM methods have in common: options, facts about the method, and weights if it is learned.

    A learned method declares the field `weights: str = ""`, the path of a safetensors file. The file is read once, when
    `tango.prune` binds the method to a model. `config()` holds the path, and a journal the hash of the file's content.
    """

    name: ClassVar[str]  # set by @register
    limits: ClassVar[Limits] = {}  # of options, both ends included
    budget_rule: ClassVar[str] = ""  # tokens kept, in words
    # What the authors use on a model family, as settings of `Plan.parse`: options, and what stands beside them, such as
    # `positions`, or `layer_pruner` with `layer_<name>`. With `pruned_layer` for `layer_layer`, ratios are means.
    presets: ClassVar[Presets] = {}
    paper: ClassVar[Paper] = UNPUBLISHED

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def about_time(self) -> str:
        """Why the method cannot prune an image, which has no time; "": it can."""
        return ""

    def config(self) -> dict[str, object]:
        """The options as a dictionary, from which `build_pruner` or `build_layer_pruner` builds an equal method."""
        return dataclasses.asdict(self)

    def bind(self: BoundMethod, model: nn.Module) -> BoundMethod:
        """Return the method for this model: itself or, if it has `weights`, a copy that holds their tensors.

        Raises:
            OptionError: the file is missing, is no safetensors file, or holds NaN or infinity.
        """
        if getattr(self, "weights", None) is None:
            return self
        bound = copy.copy(self)
        vars(bound)["_tensors"] = self._read(model.device)  # not a field, so that config() stays JSON
        return bound

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of `weights` by name, in the file's dtypes, on the model's device.

        Raises:
            TangoError: the method is not bound to a model.
        """
        if "_tensors" not in vars(self):
            raise TangoError(f"{self.name} has read no weights yet; tango.prune does it, or pruner.bind(model)")
        return vars(self)["_tensors"]

    def check_weights(self) -> None:
        """Check that the file of `weights` can be opened, before a model takes minutes to load.

        Raises:
            OptionError: the file is missing or is no safetensors file.
        """
        if getattr(self, "weights", None) is not None:
            self._read(None)

    def _read(self, device: object) -> dict[str, Tensor]:
        """Read the tensors to a device; None: open the file and read none."""
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

    def _check_output(self, what: str, rows: Tensor, indices: Tensor, width: int) -> None:
        if len(indices) == 0 or rows.shape != (len(indices), width):
            raise AssertionError(f"{self.name} returned {what} {tuple(rows.shape)} for {len(indices)} indices")
        # On a GPU this check would synchronise; there we rely on the tests, which run on the CPU.
        if indices.device.type == "cpu" and not bool((indices.diff() > 0).all()):
            raise AssertionError(f"{self.name} returned indices that do not strictly increase")


@dataclass(frozen=True, kw_only=True)
class Pruner(Method, ABC):
    """A pre-LLM method: reduces the visual tokens of one video. An instance holds its options and no run state.

    Calling a pruner checks the input, returns all tokens untouched at `retention_ratio` 1, and checks the output;
    a subclass implements `prune`. Features stay differentiable; the choice of tokens does not.

    Raises:
        BudgetError: `retention_ratio` is outside (0, 1].
        MissingSignalError: the tokens lack a needed signal (on the call).
    Example:
        >>> class StridePruner(tango.Pruner):
        ...     name = "stride"
        ...
        ...     def prune(self, tokens):
        ...         x = tokens.features.flatten(0, 1)
        ...         indices = torch.arange(0, len(x), round(1 / self.retention_ratio))
        ...         return tango.PrunedTokens(features=x[indices], indices=indices)
        >>> StridePruner(retention_ratio=0.25)(tokens).features.shape
        torch.Size([72, 48])
    """

    retention_ratio: float = 0.10  # fraction KEPT, in (0, 1]
    exact_budget: bool = False  # keep exactly round(retention_ratio * T * N) tokens, a function of the shape alone

    needs: ClassVar[Signal] = Signal.NONE  # the adapter computes these, or refuses them by name before it starts
    default_saliency: ClassVar[str] = "p-attn"  # used unless a run names another
    default_positions: ClassVar[str | None] = None  # None: the model's own
    by_ratio: ClassVar[ByRatio] = {}  # options that follow from the retention ratio while they are None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("retention_ratio", self.retention_ratio)

    @classmethod
    def fixed_by_mean(cls, mean: float, options: Mapping[str, object]) -> dict[str, Any]:
        """Values at this mean over the LLM's layers for those options of `by_ratio` that are None.

        Where a layer pruner follows, a larger ratio than the mean enters the LLM; as in the release, the mean decides.
        """
        return {name: rule(mean) for name, rule in cls.by_ratio.items() if options.get(name) is None}

    def for_mean(self, mean: float, num_layers: int, layer_pruner: LayerPruner | None = None) -> Pruner:
        """Return the same method with the ratio that keeps this fraction of tokens on average over the LLM's layers.

        Raises:
            BudgetError: even if all tokens enter the LLM, `layer_pruner` leaves fewer.
        Example:
            >>> tango.TangoPruner().for_mean(0.1, 28, tango.FastvMergePruner()).retention_ratio
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
        """Signals that these options make use of if the model has them; always includes `needs`."""
        return self.needs

    @property
    def about_time(self) -> str:
        return "reads the times of frames" if Signal.TIMESTAMPS in self.wants else ""

    @abstractmethod
    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        """Choose tokens and merge others into them.

        An implementation neither writes into `tokens` nor draws from a global random generator.
        """

    def __call__(self, tokens: VisualTokens) -> PrunedTokens:
        if self.retention_ratio == 1:
            return keep_all(tokens)
        for kind in self.needs.kinds:
            if getattr(tokens, kind.field) is None:
                shape = ", ".join(kind.shape)
                raise MissingSignalError(f"{self.name} needs {kind.field} ({shape}); these tokens carry none")
        pruned = self.prune(tokens)
        self._check_output("features", pruned.features, pruned.indices, tokens.features.shape[-1])
        return pruned


@dataclass(frozen=True, kw_only=True)
class KeepAllPruner(Pruner):
    """Keep all visual tokens: what stands before an intra-LLM method that works alone. It has no registered name.

    Example:
        >>> len(tango.KeepAllPruner()(tokens).indices)
        288
    """

    retention_ratio: float = 1.0

    name: ClassVar[str] = "none"

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        return keep_all(tokens)


@dataclass(frozen=True, kw_only=True)
class TowerMerger(Method, ABC):
    """A tower method: leaves fewer frames of one video after some blocks of the vision tower.

    A pre-LLM method works on the frames that are left; its ratio refers to the tokens of all frames. Calling a merger
    checks its output; a subclass implements `merge`.

    Raises:
        OptionError: `blocks` are no increasing numbers.
    Example:
        >>> class HalfMerger(tango.TowerMerger):
        ...     name = "half"
        ...
        ...     def merge(self, frames):
        ...         return tango.TowerFrames(hidden=frames.hidden[::2], sources=frames.sources[::2])
        >>> HalfMerger(blocks="0")(tango.TowerFrames(hidden=torch.ones(5, 9, 8), sources=tuple(range(5)))).sources
        (0, 2, 4)
    """

    blocks: str = "6"  # numbers of the blocks after which frames are merged, from 0, with commas between

    def __post_init__(self) -> None:
        super().__post_init__()
        after = self.after
        if not after or after[0] < 0 or any(a >= b for a, b in pairwise(after)):
            raise OptionError(
                f"blocks must be increasing numbers of blocks from 0, such as 6,14,20; got {self.blocks!r}"
            )

    @property
    def after(self) -> tuple[int, ...]:
        """`blocks` as numbers."""
        try:
            return tuple(int(part) for part in re.split("[:,]", self.blocks.strip(" []()")))
        except ValueError:
            return ()

    @abstractmethod
    def merge(self, frames: TowerFrames) -> TowerFrames:
        """Merge frames, or drop some. An implementation does not write into `frames`."""

    def groups(self, hidden: Tensor) -> tuple[int, ...]:
        """Lengths of the runs of similar frames among those that are left (T, p, P), for methods that read them; ():
        no such runs."""
        del hidden
        return ()

    def __call__(self, frames: TowerFrames) -> TowerFrames:
        left = self.merge(frames)
        if len(left.sources) != len(left.hidden) or not left.sources or not set(left.sources) <= set(frames.sources):
            raise AssertionError(f"{self.name} returned {len(left.hidden)} frames for sources {left.sources}")
        if left.sources[0] != frames.sources[0] or any(a >= b for a, b in pairwise(left.sources)):
            raise AssertionError(f"{self.name} must keep the first frame and the order, got sources {left.sources}")
        return left


@dataclass(frozen=True, kw_only=True)
class LayerPruner(Method, ABC):
    """An intra-LLM method: reduces the visual tokens of one prompt at the input of one or several decoder layers.

    Calling a layer pruner returns all tokens untouched at `retention_ratio` 1, and checks the output; a subclass
    implements `prune`. Hidden states stay differentiable; the choice of tokens does not.

    Raises:
        BudgetError: `retention_ratio` is outside (0, 1] or `layer` is below 1.
    Example:
        >>> class KeyNormPruner(tango.LayerPruner):
        ...     name = "key-norm"
        ...
        ...     def prune(self, tokens):
        ...         norms = tokens.keys[tokens.visual].flatten(1).norm(dim=-1)
        ...         kept = norms.topk(round(self.retention_ratio * len(norms))).indices.sort().values
        ...         return tokens.hidden[tokens.visual[kept]], kept
        >>> states, kept = KeyNormPruner(layer=2)(prompt)
        >>> len(prompt.visual), len(kept)
        (54, 27)
    """

    layer: int  # number of layers that run on all visual tokens before this one
    retention_ratio: float = 0.5  # of the visual tokens that reach this layer

    noncausal_layer: ClassVar[bool] = False  # the layer before `layer` reads the prompt without a causal mask
    reads: ClassVar[Literal["before", "own"]] = "before"  # queries and keys of the layer before, or of `layer` itself

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("retention_ratio", self.retention_ratio)
        if self.layer < 1:
            raise BudgetError(f"layer must be at least 1 (the layers that see all tokens), got {self.layer}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers at whose input `prune` is called, in increasing order, `layer` first."""
        return (self.layer,)

    def for_mean(self, mean: float, num_layers: int) -> LayerPruner:
        """Return the same method with the ratio that keeps this fraction of tokens on average over the LLM's layers.

        All tokens enter the LLM.

        Source: eq. 1 of arXiv:2604.09547, solved for the ratio.
        Raises:
            BudgetError: the layers that see all tokens already exceed this mean.
        Example:
            >>> tango.FastvPruner(layer=2).for_mean(0.1, 28).retention_ratio
            0.0307...
        """
        return dataclasses.replace(
            self, retention_ratio=solve_layer_ratio(mean, num_layers=num_layers, layer=self.layer)
        )

    def mean_share(self, num_layers: int) -> float:
        """Of the visual tokens that enter the LLM, the fraction that enters a layer, averaged over its layers.

        Raises:
            BudgetError: the LLM has no such layer.
        """
        return mean_retention_ratio(
            1.0, num_layers=num_layers, layer=self.layer, layer_retention_ratio=self.retention_ratio
        )

    @abstractmethod
    def prune(self, tokens: LayerTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose tokens and merge others into them.

        An implementation neither writes into `tokens` nor draws from a global random generator.

        Returns:
            States (K, D) of the kept visual tokens, and which of `tokens.visual` they are: (K,), strictly increasing.
        """

    def __call__(self, tokens: LayerTokens) -> tuple[torch.Tensor, torch.Tensor]:
        if self.retention_ratio == 1:
            return tokens.hidden[tokens.visual], torch.arange(len(tokens.visual), device=tokens.visual.device)
        states, indices = self.prune(tokens)
        self._check_output("states", states, indices, tokens.hidden.shape[1])
        return states, indices
