"""Queries and keys of an attention module, taken where every family hands them over: at the attention function.

There they are rotated, normalised and split into heads as the family does it, whatever that is.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_MARK = "tango_tap"  # attribute of an attention module
_LOCK = threading.Lock()

# Gets queries (rows, heads, tokens, d), keys (rows, groups, cached + tokens, d; a static cache hands over all of its
# columns, unused ones last) and the scale of their products.
Note = Callable[[Tensor, Tensor, float], None]


class AttentionTap:
    """Calls `note` with what the attention function of a module gets, from now on until `remove()`.

    The function gets the same and returns the same, under whatever name it is known (eager, sdpa, flash). Several taps
    of one module may come and go in any order, also from several threads; with the last of them nothing stays behind.
    Compiled code passes by untapped.

    Example:
        >>> tap = AttentionTap(decoder.layers[0].self_attn, lambda q, k, scale: print(q.shape))
        >>> tap.remove()
    """

    def __init__(self, attention: nn.Module, note: Note):
        self._attention, self._note = attention, note
        with _LOCK:
            tapped = vars(attention).get(_MARK) or _Tapped(attention)
            tapped.notes.append(note)

    def remove(self) -> None:
        """Stop. Doing it twice is harmless."""
        with _LOCK:
            tapped = vars(self._attention).get(_MARK)
            if tapped is None or self._note not in tapped.notes:
                return
            tapped.notes.remove(self._note)
            if not tapped.notes:
                tapped.undo()


class _Tapped:
    """An attention module whose config, a copy of its own, names a function in transformers' registry that is ours."""

    def __init__(self, attention: Any):
        self.attention, self.config, self.notes = attention, attention.config, list[Note]()
        self._name = f"tango_tap_{id(attention)}"
        ALL_ATTENTION_FUNCTIONS[self._name] = self._call
        attention.config = copy.copy(self.config)
        attention.config._attn_implementation_internal = self._name
        vars(attention)[_MARK] = self

    def undo(self) -> None:
        self.attention.config = self.config
        del vars(self.attention)[_MARK], ALL_ATTENTION_FUNCTIONS[self._name]

    def _call(self, module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            scaling = kwargs.get("scaling")
            for note in tuple(self.notes):
                note(query.detach(), key.detach(), query.shape[-1] ** -0.5 if scaling is None else scaling)
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        return function(_Untapped(module, self.config), query, key, *args, **kwargs)


class _Untapped:
    """The module, with the config that it had: flash attention reads its own name there."""

    def __init__(self, module: Any, config: Any):
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
