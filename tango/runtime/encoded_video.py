"""`EncodedVideo`: a video after tower and pruner, about which any number of questions can be asked."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tango.annotations import Int
from tango.containers import Video
from tango.errors import TangoError
from tango.methods import LayerPruner, Pruner
from tango.methods.base import Method
from tango.models.base import Adapter
from tango.models.calls import cache_of
from tango.models.processors.messages import TimeInstruction
from tango.models.processors.qwen import VisionMarks
from tango.models.splice import ShortPrompt
from tango.runtime.pruned_videos import PrunedVideos

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache, DynamicCache

# What makes `generate` prepare a cache of its own kind, or run the prompt in more rows or other pieces than one.
_OTHER_CACHES = ("cache_implementation", "prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit")
_OTHER_LOOPS = ("assistant_model", "custom_generate")


def empty_cache(model: PreTrainedModel) -> DynamicCache | None:
    """The cache that `generate` prepares by itself; None unless every layer of it keeps all keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    return cache if cache.layers and all(type(layer) is DynamicLayer for layer in cache.layers) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    """Keys and values of the beginning of a short prompt, up to its video's last token."""

    input_ids: Int[Tensor, "1 columns"]
    position_ids: Int[Tensor, "1 columns"] | Int[Tensor, "axes 1 columns"]
    layers: tuple[tuple[Tensor, Tensor], ...]  # keys and values (1, groups, columns, d) of every layer of the LLM

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values."""
        return sum(x.nbytes for layer in self.layers for x in layer)

    def begins(self, short: ShortPrompt) -> bool:
        """Whether this is the beginning of a prompt, by ids and positions, and something follows."""
        n = self.input_ids.shape[1]
        if len(short.input_ids) != 1 or n >= short.input_ids.shape[1]:
            return False
        same = (self.input_ids == short.input_ids[:, :n]) & (self.position_ids == short.position_ids[..., :n])
        return bool(same.all())  # one read from the device, which no tower or prefill keeps waiting

    def copy_into(self, cache: DynamicCache) -> DynamicCache:
        """Fill an empty cache; what is written to it later does not reach the prefix."""
        for i, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, i)  # concatenates, and so copies
        return cache


class Origin:
    """Which model, in which state and with which plan, encoded a video."""

    def __init__(self, adapter: Adapter, pruner: Pruner, layer_pruner: LayerPruner | None):
        model = adapter.model
        self.pruner = pruner  # holds what `bind` has read
        self._model = weakref.ref(model)
        self._weights = _weights(model)
        self._facts: dict[str, object] = {
            "method": pruner.name,
            "layer_pruner": layer_pruner and layer_pruner.name,
            "saliency": adapter.saliency,
            "positions": getattr(adapter, "position_rule", None),
            "keep_newlines": adapter.keep_newlines,
            "tower": adapter.tower_merger,
            "dtype": str(model.dtype),
            "device": str(adapter.device),
            "autocast": torch.is_autocast_enabled(adapter.device.type),
        }

    def check(self, now: Origin) -> None:
        """Refuse to go on with another model, another state of it, or another plan.

        Raises:
            TangoError: the message says what differs.
        """
        if self._model() is not now._model():
            raise TangoError("this video was encoded by another model; encode it with this one: tango.encode")
        changed = _differences(self._facts, now._facts)
        if type(self.pruner) is type(now.pruner):
            changed += _differences(self.pruner.config(), now.pruner.config())
        elif self.pruner.name == now.pruner.name:
            changed.append("the method's class is another")
        learned = type(self.pruner).bind is not Method.bind or getattr(self.pruner, "weights", None) is not None
        if learned and self.pruner is not now.pruner:
            changed.append("the method read its weights anew")
        if self._weights != now._weights:
            changed.append("the model's weights or active adapters changed")
        if changed:
            raise TangoError(
                f"this video was encoded otherwise than the model would encode it now: {'; '.join(changed)} "
                "('none' keeps all tokens). Prune the model with the same plan, or encode the video again"
            )


def _differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [f"{name} was {value!r} and is {after[name]!r}" for name, value in before.items() if value != after[name]]


def _weights(model: nn.Module) -> list[object]:
    """What differs once parameters are replaced or written to, or PEFT's adapters are switched, scaled or merged."""
    # Weights that are offloaded are on "meta" between calls, and other objects after each.
    state: list[object] = [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters() if not p.is_meta]
    if (tuners := sys.modules.get("peft.tuners.tuners_utils")) is not None:  # else no layer is one of PEFT's
        names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
        layers = (module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer))
        state += [repr([getattr(layer, name, None) for name in names]) for layer in layers]
    return state


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """All that the text of a prompt needs of its video; the last two as in `tango.prepare`."""

    video: Video | Tensor  # size and times; the frames show nothing
    time_instruction: TimeInstruction | None
    vision_marks: VisionMarks | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EncodedVideo:
    """A video as `tango.encode` leaves it: its pruned tokens, not its pixels and not its other tokens.

    It stands for the video in `tango.answer` and `tango.prepare`, on the model that encoded it, while that is pruned
    with the same plan. Nothing changes it, so questions about it may come from several threads, too, if the model is
    pruned (`tango.KeepAllPruner()` prunes nothing).

    Example:
        >>> video = tango.encode(model, processor, "clip.mp4")
        >>> isinstance(video, tango.EncodedVideo), video.tokens_before, video.tokens_after
        (True, 784, 784)
    """

    outline: Outline
    pruned: PrunedVideos  # one video
    origin: Origin
    video_input: str  # the model input that it is given as
    prefix: Prefix | None = None

    @property
    def tokens_before(self) -> int:
        """Visual tokens before pruning."""
        return self.pruned.sizes[0].tokens_before

    @property
    def tokens_after(self) -> int:
        """Visual tokens after pruning; newlines, which are kept as well, are not counted."""
        return self.pruned.sizes[0].tokens_after

    @property
    def token_bytes(self) -> int:
        """Memory of the pruned tokens, in bytes."""
        videos = self.pruned
        return sum(x.nbytes for x in (videos.features, *videos.keep_masks, *(x for own in videos.deeper for x in own)))

    @property
    def prefix_bytes(self) -> int:
        """Memory of the prefix's keys and values, in bytes; 0: none are kept."""
        return 0 if self.prefix is None else self.prefix.nbytes

    def __repr__(self) -> str:
        sizes = f"{self.token_bytes / 1024:.0f} KiB, prefix {self.prefix_bytes / 1024:.0f} KiB"
        method = self.origin.pruner.name
        return f"<EncodedVideo, {method}: {self.tokens_before} -> {self.tokens_after} visual tokens, {sizes}>"

    def prefix_for(
        self, short: ShortPrompt, arguments: Mapping[str, Any], model: PreTrainedModel
    ) -> DynamicCache | None:
        """A cache with the prefix of a prompt; None where there is none, or `generate` is to use another cache.

        Args:
            arguments: those of `generate`.
        """
        config = arguments.get("generation_config") or model.generation_config

        def given(name: str) -> Any:
            return getattr(config, name, None) if arguments.get(name) is None else arguments[name]

        rows = max(given("num_beams") or 1, given("num_return_sequences") or 1)
        others = any(given(name) is not None for name in _OTHER_CACHES) or given("use_cache") is False
        own: Cache | None = cache_of(arguments)
        if rows > 1 or others or own is not None or any(arguments.get(name) is not None for name in _OTHER_LOOPS):
            return None
        if self.prefix is None or not self.prefix.begins(short) or (cache := empty_cache(model)) is None:
            return None
        return self.prefix.copy_into(cache)
