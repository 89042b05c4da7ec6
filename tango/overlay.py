"""Prepared embeddings for a prompt that stock `generate` believes to consist of ids."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from tango.profiling import StageTimer


class Overlay:
    """While entered, the prompt's positions get `prompt` (B, S, D) instead of the embeddings of their ids.

    `generate` accepts embeddings too, but then goes wrong with assisted decoding and chunked prefill. Calls from other
    threads are left alone. With a cache the hooks leave once the prompt has passed, so decoding runs without them.
    The time until then is the stage "prefill", and `prefill_end` the mark that decoding starts from.
    """

    def __init__(self, model: Any, prompt: Tensor, timer: StageTimer):
        self.prefill_end: Any = None
        self._model, self._prompt, self._timer = model, prompt, timer
        self._owner = threading.get_ident()
        self._start: Any = None  # of the call that is running, if it counts as prefill
        self._cached = False
        self._passed = False

    def __enter__(self) -> Overlay:
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self._owner or kwargs.get("input_ids") is None:
            return None
        ids, cache = kwargs["input_ids"], kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        S = self._prompt.shape[1]
        if past >= S:
            return None
        if not self._passed:
            self._start = self._timer.mark()
        count = min(S - past, ids.shape[1])
        self._cached, self._passed = cache is not None, past + count >= S
        repeats = len(ids) // len(self._prompt)  # beams, or several samples per prompt
        embeds = model.get_input_embeddings()(ids)
        prompt = self._prompt[:, past : past + count].repeat_interleave(repeats, dim=0).to(embeds)
        rest = {name: value for name, value in kwargs.items() if name != "input_ids"}
        return args, {**rest, "inputs_embeds": torch.cat([prompt, embeds[:, count:]], dim=1)}

    def _after(self, _model: nn.Module, _args: tuple, _output: Any) -> None:
        if threading.get_ident() != self._owner or self._start is None:
            return
        self.prefill_end = self._timer.mark()
        self._timer.add("prefill", self._start, self.prefill_end)
        self._start = None
        if self._passed and self._cached:
            self.__exit__()
