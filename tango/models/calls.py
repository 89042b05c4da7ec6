"""One pruned call: which passes through the model belong to it, and what a cache must remember of it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tango.errors import TangoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

Inputs = Mapping[str, Any]  # keyword arguments of a model's call: tensors, and lists of them

_TAG = "pruned_prompt"  # attribute of a cache: ids of the short prompt that it holds


def on_host(inputs: Inputs) -> dict[str, Any]:
    """The inputs with everything but pixels and sound on the host, where grids, times and ids are worked with.

    Read before the tower is launched, they are there at once; later the host would wait for the tower.
    """
    stays = ("pixel", "input_features")
    return {name: value if any(part in name for part in stays) else _to_host(value) for name, value in inputs.items()}


def without(names: Collection[str], inputs: Inputs) -> dict[str, Any]:
    """The inputs but those of these names."""
    return {name: value for name, value in inputs.items() if name not in names}


def _to_host(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_host(item) for item in value]
    return value.cpu() if isinstance(value, Tensor) else value


class Call:
    """A `generate` or `forward` call that prunes, in the thread that made it.

    The caller's own code, such as a logits processor, may run inside the call and call a model. Meanwhile the call
    stands aside, so that model sees its own inputs and not the embeddings of this call's video.
    """

    def __init__(self) -> None:
        # Builds the logits processors of `generate`, for the prompt that the caller knows.
        self.make_processors: Callable[[Callable[..., object], dict[str, object]], object] | None = None
        self.accepted = False  # the pruned features were found finite
        self.passed = False  # the pruned embeddings have reached the model, at least in part
        self.is_stock = False  # stock code runs on images that stand under a video's names
        self._thread = threading.get_ident()
        self._aside = 0

    @property
    def own(self) -> bool:
        """Whether what runs now belongs to this call."""
        return not self._aside and threading.get_ident() == self._thread

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While entered, nothing that runs belongs to this call."""
        self._aside += 1
        try:
            yield
        finally:
            self._aside -= 1


def cache_of(arguments: Inputs) -> Any:
    """The cache among the arguments of a model or a layer, or None; transformers renamed the argument in 5.24."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


def cache_argument(model: PreTrainedModel) -> str:
    """The name of that argument for this model, in the installed transformers."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def remember_prompt(cache: Cache | None, ids: Tensor) -> None:
    """Note on a cache that it holds a pruned prompt with these ids (B, S)."""
    if cache is not None:
        setattr(cache, _TAG, ids)


def has_any(ids: Tensor, tokens: Sequence[int]) -> bool:
    """Whether one of these tokens is among the ids; reads from their device."""
    return any(bool((ids == token).any()) for token in tokens)


def remembered_prompt(cache: Cache, pruned_token_ids: Sequence[int]) -> Tensor | None:
    """The ids (B, n) of a pruned prompt that a cache holds, perhaps in part; None if no placeholder of what is pruned
    is among them."""
    ids = getattr(cache, _TAG, None)
    if ids is None:
        return None
    length = int(cache.get_seq_length())
    if not length:  # it was emptied: what comes now is another prompt
        delattr(cache, _TAG)
    held = ids[:, :length]
    return held if has_any(held, pruned_token_ids) else None


def check_cache(
    cache: Cache | None, ids: Tensor | None, pruned_token_ids: Sequence[int], *, question_aware: bool
) -> None:
    """Refuse a cache with a pruned prompt, unless the new short prompt (B, S) begins with that very one.

    Args:
        ids: of the new prompt; None: it has no video.
        question_aware: what was kept of the video depends on the question, so the cache must hold that, too.
    """
    held = None if cache is None else remembered_prompt(cache, pruned_token_ids)
    if held is None:
        return
    if question_aware and held.shape[1] < getattr(cache, _TAG).shape[1]:
        raise TangoError(
            "the cache (past_key_values) was cut: it holds a pruned video without the question by which its tokens "
            "were chosen; leave out the cache"
        )
    if ids is None or not torch.equal(held, ids[:, : held.shape[1]].to(held.device)):
        raise TangoError(
            f"the cache (past_key_values) holds a pruned prompt of {held.shape[1]} tokens, which these input_ids do "
            "not begin with; leave out the cache, or give the conversation with its video again beside it"
        )
