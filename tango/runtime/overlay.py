"""Prepared embeddings for a prompt that stock `generate` holds as ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tango.models.base import Adapter
from tango.models.calls import Call, cache_of, remember_prompt
from tango.models.splice import ShortPrompt
from tango.profiling import StageTimer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Overlay:
    """While entered, give the prompt's positions the embeddings of `short` instead of those of their ids.

    Embeddings could also be given to `generate`, but assisted decoding and chunked prefill then go wrong. Passes that
    belong to another call are left alone. With a cache, the hooks are removed once the prompt has passed, so decoding
    runs without them. The stage "prefill" ends there, and decoding is timed from that mark, `prefill_end`.

    Args:
        passed: called once the whole prompt has passed, before a token is chosen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        short: ShortPrompt,
        timer: StageTimer,
        call: Call,
        adapter: Adapter,
        passed: Callable[[], None],
    ):
        self._when_passed = passed
        self.prefill_end: float | torch.cuda.Event | None = None
        self._model, self._short, self._timer, self._call = model, short, timer, call
        self._adapter = adapter
        self._flash = "flash" in str(model.config.get_text_config()._attn_implementation)
        # When the running pass began, if it is part of the prefill.
        self._start: float | torch.cuda.Event | None = None
        self._cached = False  # there is a cache
        self._passed = False  # the whole prompt has passed

    def __enter__(self) -> Overlay:
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(
        self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, object]] | None:
        given = any(kwargs.get(name) is not None for name in self._adapter.pruned_inputs)
        if not self._call.own or kwargs.get("input_ids") is None or given:
            return None  # a pass with a video of its own belongs to another call
        ids, cache, prompt = kwargs["input_ids"], cache_of(kwargs), self._short.inputs_embeds
        past = 0 if cache is None else int(cache.get_seq_length())
        S = prompt.shape[1]
        self._call.passed = True
        if past >= S:
            return None
        if not self._passed:
            self._start = self._timer.mark()
            remember_prompt(cache, self._short.input_ids)
        count = min(S - past, ids.shape[1])  # columns of the prompt in this pass
        self._cached, self._passed = cache is not None, past + count >= S
        repeats = len(ids) // len(prompt)  # beams, or several samples per prompt
        now = slice(past, past + count)
        embeds = prompt[:, now].repeat_interleave(repeats, dim=0)
        rest = ids[:, count:].to(embeds.device)  # the LLM may begin on another device than the model
        text_ids = torch.cat([self._short.text_ids[:, now].repeat_interleave(repeats, dim=0), rest], dim=1)
        if count < ids.shape[1]:
            rest = model.get_input_embeddings()(rest)
            embeds = torch.cat([embeds.to(rest), rest], dim=1)
        others = {name: value for name, value in kwargs.items() if name != "input_ids"}
        if ids.shape[1] == S and cache is not None and not self._short.is_padded and not self._flash:
            others["attention_mask"] = None  # it is full; stock code would read it from the device to find out
        return args, {**others, **self._adapter.beside_embeds(text_ids), "inputs_embeds": embeds}

    def _after(self, _model: nn.Module, _args: tuple, _output: object) -> None:
        if not self._call.own or self._start is None:
            return
        self.prefill_end = self._timer.mark()
        self._timer.add("prefill", self._start, self.prefill_end)
        self._start = None
        if self._passed:
            self._when_passed()
        if self._passed and self._cached:
            self.__exit__()
