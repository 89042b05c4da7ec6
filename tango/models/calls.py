"""One pruned call: which passes through the model are its own, and what a cache must remember of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_TAG = "pruned_prompt"  # attribute of a cache: ids of the short prompt that it holds


class Call:
    """A `generate` or `forward` call that prunes, in the thread that made it.

    While the caller's own code runs inside it, such as a logits processor, the call stands aside: a model that is
    called from there gets what it was given, not the embeddings of this call's video.
    """

    def __init__(self) -> None:
        # Of `generate`: builds its logits processors, for the prompt that the caller knows.
        self.make_processors: Callable[[Callable[..., Any], dict[str, Any]], Any] | None = None
        self.passed = False  # the pruned embeddings have reached the model, at least in part
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


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model or a layer; transformers renamed it in 5.24."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


def remember_prompt(cache: Any, ids: Tensor) -> None:
    """Note on a cache that it holds a pruned prompt with these ids (B, S)."""
    if cache is not None:
        setattr(cache, _TAG, ids)


def remembered_prompt(cache: Any, video_token_id: int) -> Tensor | None:
    """Ids (B, n) of a pruned prompt as far as a cache holds it; None: it holds none, or nothing of its videos."""
    ids = getattr(cache, _TAG, None)
    if ids is None:
        return None
    held = ids[:, : int(cache.get_seq_length())]
    return held if bool((held == video_token_id).any()) else None
