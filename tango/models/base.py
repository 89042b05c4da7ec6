"""The contract between Tango and a model family. Adapters are the only code that knows transformers' insides."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from tango.containers import ALL_SIGNALS, PrunedTokens, Signal, VisualTokens
from tango.errors import MissingSignalError, UnsupportedModelError
from tango.extensions import load_group
from tango.models.calls import Call
from tango.models.pooling_head import PoolingHead
from tango.models.processors import stock
from tango.models.splice import ShortPrompt
from tango.models.weights import read_model
from tango.ops.llm_shapes import Newlines
from tango.ops.saliency import PoolingQuery, saliency_function
from tango.profiling import StageTimer

# Text models, by `model_type`, whose layers have `self_attn` with `q_proj`, `k_proj` and half-split rotations, which
# methods with `reads = "own"` count on, and whose masks are plainly causal.
DECODERS = ("llama", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3", "qwen3_vl_text")

# Fields of `VisualTokens` that a tower makes, frame by frame.
TOKEN_FIELDS = ("features", *(ALL_SIGNALS & ~Signal.TIMESTAMPS).fields)

GROUP = "tango.models"  # of entry points

_ADAPTERS: dict[str, type[Adapter]] = {}

A = TypeVar("A", bound="type[Adapter]")


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideos:
    """All videos of a batch. `extras`: of each, features (T*N, D) for deeper layers of the LLM, if it has such."""

    videos: list[VisualTokens]
    extras: list[list[Tensor]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImages:
    """All images of a batch: id of their placeholder, features (placeholders, D), and the adapter's own extras."""

    token_id: int
    features: Tensor
    extras: Any = None


class Adapter(ABC):
    """Turns one family's inputs into visual tokens, and pruned tokens back into prompt embeddings.

    Args:
        saliency: a name from `available_saliency()`: "p-attn", attention of the vision tower's pooling query; "attn",
            mean attention received; or one that was registered.
    Raises:
        UnknownNameError: no such saliency.
    """

    title: ClassVar[str]  # the family as people write it
    model_class: ClassVar[str]  # name of the stock class that generates, which a model is an instance of
    signals: ClassVar[Signal] = Signal.NONE  # what models of this family can supply; one of them may still lack some
    consumed: ClassVar[frozenset[str]]  # inputs that this adapter uses up before the LLM runs
    default_num_frames: ClassVar[int]  # frames that the model usually sees
    video_input: ClassVar[str] = "pixel_values_videos"
    pooling_query: ClassVar[PoolingQuery] = "mean"  # what "p-attn" saliency means of this family's tower
    newlines: ClassVar[Newlines] = "none"  # placeholders that are newlines
    stock_is_right: ClassVar[bool] = True  # False: only Tango lays out this model's videos as it was trained with

    def __init__(self, model: Any, *, saliency: str = "p-attn"):
        saliency_function(saliency)
        self.model, self.saliency = model, saliency

    @classmethod
    def load_model(cls, folder: Path, config: Any, **options: Any) -> Any:
        """The stock model of a checkpoint; `options` are those of `from_pretrained`.

        Raises:
            CheckpointError: the weights are not those of the model that the config describes.
        """
        from transformers import AutoModelForImageTextToText

        return read_model(AutoModelForImageTextToText, folder, config, **options)

    @classmethod
    def make_processor(cls, folder: Path, config: Any, tokenizer: Any = None) -> Any:
        """The processor of a checkpoint; unless a family has one of its own, transformers', which needs torchvision.

        Args:
            tokenizer: None: the one in the folder.
        Raises:
            MissingPartError: torchvision is not installed.
        """
        if tokenizer is not None:
            raise UnsupportedModelError(f"{cls.title} takes the tokenizer of its checkpoint, and no other")
        return stock.wrapped(folder, default_num_frames=cls.usual_num_frames(config))

    @classmethod
    def usual_num_frames(cls, config: Any) -> int:
        """Frames that a checkpoint's model usually sees: what its own config says, or the family's number."""
        return int(getattr(config, "default_num_frames", cls.default_num_frames))

    @classmethod
    @abstractmethod
    def tokens_per_step(cls, config: Any) -> int:
        """N, visual tokens of a frame, or of frames that are encoded together, in a video of the usual size."""

    @classmethod
    def frames_per_step(cls, config: Any) -> int:
        """Frames that are encoded together."""
        del config
        return 1

    @classmethod
    def num_video_tokens(cls, config: Any, num_frames: int) -> int:
        """Placeholders that one video takes in an unpruned prompt, newlines included."""
        steps, N = math.ceil(num_frames / cls.frames_per_step(config)), cls.tokens_per_step(config)
        rows = steps * math.isqrt(N)  # of square frames
        return steps * N + {"none": 0, "video": 1, "row": rows}[cls.newlines]

    @classmethod
    @abstractmethod
    def tower(cls, model: Any) -> Any:
        """The vision tower of a model: the module whose config says how it attends."""

    @classmethod
    @abstractmethod
    def tower_blocks(cls, model: Any) -> Any:
        """The blocks of the tower, in order."""

    @classmethod
    def compilable(cls, model: Any) -> list[tuple[Any, str, Callable[..., Any]]]:
        """What `tango.compile_tower` compiles of this model: (owner, name, function) each, where an attribute of this
        name on the owner stands in for the function; nothing, if the family cannot have it."""
        del model
        return []

    @property
    def decoder(self) -> Any:
        """The text model, for pruning at the input of one of its layers.

        Raises:
            UnsupportedModelError: it is none whose attention Tango can follow.
        """
        decoder = getattr(getattr(self.model, "model", None), "language_model", None)
        config = getattr(decoder, "config", None)
        found = getattr(config, "model_type", type(decoder).__name__)
        if not isinstance(decoder, nn.Module) or found not in DECODERS or not hasattr(decoder, "norm"):
            raise UnsupportedModelError(f"pruning at a layer works with decoders {', '.join(DECODERS)}, not {found}")
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise UnsupportedModelError("pruning at a layer does not work with sliding-window attention")
        return decoder

    @property
    def positions_are_kept(self) -> bool:
        """Whether `positions` gives any, which stock code cannot count by itself."""
        return True

    @property
    @abstractmethod
    def video_token_id(self) -> int:
        """Id of the placeholder that stands for one visual token in the prompt."""

    def check(self, needs: Signal, method: str) -> None:
        """Refuse early, before any work.

        Raises:
            MissingSignalError: the model cannot supply what the method needs; the message says what would help.
        """
        missing = needs & ~self.signals
        if missing:
            words = " and ".join(kind.words for kind in missing.kinds)
            others = ", ".join(families_with(needs)) or "no family"
            raise MissingSignalError(
                f"{method} needs {words}, which the {self.title} adapter does not supply; it works with {others}"
            )

    @abstractmethod
    def encode_videos(self, inputs: Mapping[str, Any], wants: Signal, timer: StageTimer) -> EncodedVideos:
        """Run tower, projector and pooling; return the tokens of every video, in the order of their placeholders.

        Args:
            inputs: what the model was called with; also, here and below, `input_ids` (B, L) and `attention_mask`
                (B, L) or None.
        """

    @abstractmethod
    def encode_images(self, inputs: Mapping[str, Any]) -> EncodedImages | None:
        """Features of all images, which are not pruned; None if there are none."""

    def placeholders(
        self, input_ids: Tensor, inputs: Mapping[str, Any], images: EncodedImages | None
    ) -> tuple[Tensor, Tensor]:
        """Where tokens of videos and of images stand in the prompt, (B, L) bool each: by their ids, unless a family
        marks both by the same."""
        del inputs
        nowhere = torch.zeros_like(input_ids, dtype=torch.bool)
        return input_ids == self.video_token_id, nowhere if images is None else input_ids == images.token_id

    def short_inputs(self, short: ShortPrompt) -> dict[str, Any]:
        """What stock code must be told of the short prompt besides ids, mask and positions, such as token types (B, S).
        It replaces inputs of the same names."""
        del short
        return {}

    def beside_embeds(self, input_ids: Tensor) -> dict[str, Any]:
        """What the model makes of ids, for a stretch (B, n) of the short prompt, and cannot make of embeddings.
        Placeholders in it are pads."""
        del input_ids
        return {}

    @abstractmethod
    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        """Embeddings (kept, D) of the placeholders that stay, and for each of the video's placeholders whether it
        stays (bool). Separators such as newlines follow the family's own rule here."""

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]) -> Tensor | None:
        """Positions (B, L) or (R, B, L) of the full prompt that kept tokens retain; None: they count contiguously."""
        del input_ids, attention_mask, inputs
        return None

    def prefill_scope(
        self,
        encoded: EncodedVideos,
        pruned: list[PrunedTokens],
        images: EncodedImages | None,
        short: ShortPrompt,
        call: Call,
    ) -> AbstractContextManager[Any]:
        """What must hold while the short prompt of a call passes through the model, such as features for deeper
        layers."""
        del encoded, pruned, images, short, call
        return nullcontext()


def register_adapter(*families: str) -> Callable[[A], A]:
    """Class decorator: use this adapter for models of these families (see `family`)."""

    def add(cls: A) -> A:
        for name in families:
            if name in _ADAPTERS:
                raise ValueError(f"family {name!r} already has adapter {_ADAPTERS[name].__qualname__}")
            _ADAPTERS[name] = cls
        return cls

    return add


def supported_model_types() -> list[str]:
    """Families that `tango.prune` and `tango.load` accept, sorted."""
    load_group(GROUP)
    return sorted(_ADAPTERS)


def families_with(signals: Signal) -> list[str]:
    """Families whose adapters supply all of these signals, sorted."""
    return [name for name in supported_model_types() if signals in _ADAPTERS[name].signals]


def family(config: Any) -> str | None:
    """The name that adapters are registered under: the config's `model_type`, unless models of one type differ."""
    name = getattr(config, "model_type", None)
    if name == "llava_onevision" and getattr(config, "mm_newline_position", None) == "grid":
        return "llava_video"
    return name


def find_adapter(name: str | None) -> type[Adapter] | None:
    """The adapter of a family; None: there is none."""
    if name not in _ADAPTERS:
        load_group(GROUP)
    return _ADAPTERS.get(name or "")


def adapter_class(config: Any) -> type[Adapter]:
    """The adapter of a model, from its config or the name of its family.

    Raises:
        UnsupportedModelError: there is none; the message lists the supported families.
    """
    name = config if isinstance(config, str) else family(config)
    adapter = find_adapter(name)
    if adapter is None:
        known = ", ".join(supported_model_types())
        raise UnsupportedModelError(f"no adapter for model type {name!r}. Supported: {known}{load_group(GROUP)}")
    return adapter


def stock_is_right(model: Any) -> bool:
    """Whether the model's own `generate` handles videos as the model was trained; unknown families count as right."""
    adapter = find_adapter(family(getattr(model, "config", None)))
    return adapter is None or adapter.stock_is_right


def pooling_head_of(model: Any) -> PoolingHead | None:
    """The head that `tango.load` put beside the model (a plain attribute, not part of its weights)."""
    return getattr(model, "pooling_head", None)
