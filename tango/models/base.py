"""The contract between Tango and a model family. Adapters are the only code that knows transformers' insides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import MissingSignalError, UnsupportedModelError
from tango.models.pooling_head import PoolingHead
from tango.profiling import StageTimer
from tango.splice import ShortPrompt

SaliencyKind = Literal["p-attn", "attn"]

_ADAPTERS: dict[str, type[Adapter]] = {}

A = TypeVar("A", bound="type[Adapter]")


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideos:
    """All videos of a batch. `extras` is the adapter's own: what it needs again after pruning."""

    videos: list[VisualTokens]
    extras: Any = None


class Adapter(ABC):
    """Turns one family's inputs into visual tokens, and pruned tokens back into prompt embeddings.

    Args:
        saliency: "p-attn", attention of the vision tower's pooling query; or "attn", mean attention received.
    """

    consumed: ClassVar[frozenset[str]]  # inputs that this adapter uses up before the LLM runs
    default_num_frames: ClassVar[int]  # frames that the model usually sees
    video_input: ClassVar[str] = "pixel_values_videos"

    def __init__(self, model: Any, *, saliency: SaliencyKind = "p-attn"):
        if saliency not in ("p-attn", "attn"):
            raise MissingSignalError(f"saliency must be 'p-attn' or 'attn', got {saliency!r}")
        self.model, self.saliency = model, saliency

    @classmethod
    @abstractmethod
    def num_video_tokens(cls, config: Any, num_frames: int) -> int:
        """Placeholders that one video takes in an unpruned prompt."""

    @property
    @abstractmethod
    def video_token_id(self) -> int:
        """Id of the placeholder that stands for one visual token in the prompt."""

    @abstractmethod
    def check(self, needs: Signal, method: str) -> None:
        """Refuse early, before any work.

        Raises:
            MissingSignalError: the model cannot supply what the method needs; the message says what would help.
        """

    @abstractmethod
    def encode_videos(self, inputs: Mapping[str, Any], wants: Signal, timer: StageTimer) -> EncodedVideos:
        """Run tower, projector and pooling; return the tokens of every video, in the order of their placeholders."""

    @abstractmethod
    def encode_images(self, inputs: Mapping[str, Any]) -> tuple[int, Tensor] | None:
        """Id of the image placeholder and the features (placeholders, D) of all images; None if there are none."""

    @abstractmethod
    def lay_out(self, tokens: VisualTokens, pruned: PrunedTokens) -> tuple[Tensor, Tensor]:
        """Embeddings (kept, D) of the placeholders that stay, and for each of the video's placeholders whether it
        stays (bool). Separators such as newlines follow the family's own rule here."""

    def positions(self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]) -> Tensor | None:
        """Positions (R, B, L) of the full prompt that kept tokens retain; None: kept tokens count contiguously."""
        del input_ids, attention_mask, inputs
        return None

    def prefill_scope(
        self, encoded: EncodedVideos, pruned: list[PrunedTokens], short: ShortPrompt
    ) -> AbstractContextManager[Any]:
        """What must hold while the short prompt passes through the model, such as features for deeper layers."""
        del encoded, pruned, short
        return nullcontext()


def register_adapter(*model_types: str) -> Callable[[A], A]:
    """Class decorator: use this adapter for models whose config has one of these `model_type`s."""

    def add(cls: A) -> A:
        for model_type in model_types:
            if model_type in _ADAPTERS:
                raise ValueError(f"model type {model_type!r} already has adapter {_ADAPTERS[model_type].__qualname__}")
            _ADAPTERS[model_type] = cls
        return cls

    return add


def supported_model_types() -> list[str]:
    """`model_type`s that `tango.prune` and `tango.load` accept, sorted."""
    return sorted(_ADAPTERS)


def adapter_class(model_type: str | None) -> type[Adapter]:
    """The adapter of a model type.

    Raises:
        UnsupportedModelError: there is none; the message lists the supported types.
    """
    if model_type not in _ADAPTERS:
        raise UnsupportedModelError(
            f"no adapter for model type {model_type!r}. Supported: {', '.join(supported_model_types())}"
        )
    return _ADAPTERS[model_type]


def pooling_head_of(model: Any) -> PoolingHead | None:
    """The head that `tango.load` put beside the model (a plain attribute, not part of its weights)."""
    return getattr(model, "pooling_head", None)
