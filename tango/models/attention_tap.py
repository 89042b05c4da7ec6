"""Reads the queries and keys of an attention module where every family hands them over: at the attention function.

There they are already rotated, normalised and split into heads, in the family's own way.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MARK = "tango_tap"  # attribute of an attention module
_LOCK = threading.Lock()

# Called with queries (rows, heads, tokens, d), keys (rows, groups, cached + tokens, d) and the scale of their products.
# A static cache hands over keys for all of its columns, the unused ones last.
Note = Callable[[Tensor, Tensor, float], None]


class AttentionTap:
    """Calls `note` with what a module's attention function gets, until `remove()`.

    The function itself (eager, sdpa, flash) gets and returns the same as before. Several taps of one module may come
    and go in any order, also from several threads; the last one leaves nothing behind. Compiled code is not tapped.

    Example:
        >>> decoder = model.model.language_model
        >>> tap = AttentionTap(decoder.layers[0].self_attn, lambda queries, keys, scale: print(queries.shape[2]))
        >>> output = decoder(torch.tensor([[5, 6, 7]]))
        3
        >>> tap.remove()
    """

    def __init__(self, attention: nn.Module, note: Note):
        self._attention, self._note = attention, note
        with _LOCK:
            tapped = vars(attention).get(_MARK) or _Tapped(attention)
            tapped.notes.append(note)

    def remove(self) -> None:
        """Stop calling `note`. A second `remove` does nothing."""
        with _LOCK:
            tapped = vars(self._attention).get(_MARK)
            if tapped is None or self._note not in tapped.notes:
                return
            tapped.notes.remove(self._note)
            if not tapped.notes:
                tapped.undo()


class _Tapped:
    """An attention module with a copied config, which names our function in transformers' registry."""

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

    def _call(self, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> object:
        if not torch.compiler.is_compiling():
            scaling = kwargs.get("scaling")
            for note in tuple(self.notes):
                note(query.detach(), key.detach(), query.shape[-1] ** -0.5 if scaling is None else scaling)
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        return function(_Untapped(module, self.config), query, key, *args, **kwargs)


class _Untapped:
    """The module with its original config, where flash attention reads its own name."""

    def __init__(self, module: nn.Module, config: PretrainedConfig):
        self._module, self.config = module, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
