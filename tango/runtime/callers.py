"""What the caller's own code sees inside a pruned `generate`: the prompt that the caller knows, not the short one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tango.models.calls import Call

_LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}  # total, and what takes precedence
_TRANSFORMERS = "transformers.generation."


class CallersPrompt:
    """The prompt (B, L) that a caller gave to `generate`, which stock code runs on S columns of.

    Logits processors, also those that `generate` itself makes from its options, the caller's stopping criteria and
    streamers get ids that begin with it. While they run, the call stands aside.
    """

    def __init__(self, ids: Tensor, short_length: int, call: Call):
        self.call = call
        self._ids, self._short_length = ids, short_length
        self._converted: tuple[Tensor, Tensor] | None = None  # the latest: one step asks several times

    @property
    def saved(self) -> int:
        """Columns that the short prompt lacks."""
        return self._ids.shape[1] - self._short_length

    def extended(self, ids: Tensor) -> Tensor:
        """The caller's prompts, each for as many rows as stand for it, and after them what follows the short ones."""
        if self._converted is None or self._converted[0] is not ids:
            prompts = self._ids.to(ids.device).repeat_interleave(len(ids) // len(self._ids), dim=0)
            self._converted = ids, torch.cat([prompts, ids[:, self._short_length :]], dim=1)
        return self._converted[1]

    def adapt(self, arguments: dict[str, Any], defaults: Any) -> None:
        """Change arguments of `generate` in place: lengths count the short prompt, other code sees the caller's."""
        config = arguments.get("generation_config") or defaults
        for total, new in _LENGTHS.items():
            if arguments.get(new) is not None or getattr(config, new, None) is not None:
                continue
            value = arguments.get(total) if arguments.get(total) is not None else getattr(config, total, None)
            if value:
                arguments[total] = max(value - self.saved, 0)
        if arguments.get("stopping_criteria"):
            criteria = [self._criterion(criterion) for criterion in arguments["stopping_criteria"]]
            arguments["stopping_criteria"] = type(arguments["stopping_criteria"])(criteria)
        if arguments.get("streamer") is not None:
            arguments["streamer"] = _Streamer(arguments["streamer"], self)

    def processors(self, make: Any, arguments: dict[str, Any]) -> Any:
        """The list of logits processors that `make` builds from these arguments, for the caller's prompt."""
        config = copy.copy(arguments["generation_config"])
        for total in _LENGTHS:
            if value := getattr(config, total, None):
                setattr(config, total, value + self.saved)
        arguments = {**arguments, "generation_config": config}
        if arguments.get("input_ids_seq_length") is not None:
            arguments["input_ids_seq_length"] += self.saved
        if arguments.get("encoder_input_ids") is not None:
            arguments["encoder_input_ids"] = self.extended(arguments["encoder_input_ids"])
        processors = make(**arguments)
        return type(processors)(p if _sees_scores_alone(p) else _Processor(p, self) for p in processors)

    def _criterion(self, criterion: Any) -> Any:
        """The library's own look at lengths and latest tokens, and take the place of those that `generate` makes."""
        if not type(criterion).__module__.startswith(_TRANSFORMERS):
            return _Criterion(criterion, self)
        if isinstance(getattr(criterion, "max_length", None), int):
            criterion = copy.copy(criterion)
            criterion.max_length -= self.saved
        return criterion

    def before(self, output: Any) -> Any:
        """The output of `generate` with the caller's prompt in front of the new tokens."""
        sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if not isinstance(sequences, Tensor):
            return output  # of a `custom_generate` that returns something of its own
        sequences = self.extended(sequences)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


class _Seen:
    """The caller's object, in all but what it is called with."""

    def __init__(self, inner: Any, prompt: CallersPrompt):
        self._inner, self._prompt = inner, prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)


class _Processor(_Seen):
    """A logits processor. Lists of them look at the parameters, so there are just these two."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with self._prompt.call.aside():
            return self._inner(self._prompt.extended(input_ids), scores)


class _Criterion(_Seen):
    """A stopping criterion."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        with self._prompt.call.aside():
            return self._inner(self._prompt.extended(input_ids), scores, **kwargs)


class _Streamer(_Seen):
    """A streamer whose first ids, the prompt, are the caller's."""

    def __init__(self, inner: Any, prompt: CallersPrompt):
        super().__init__(inner, prompt)
        self._started = False

    def put(self, value: Tensor) -> None:
        if not self._started:
            value, self._started = self._prompt.extended(value), True
        with self._prompt.call.aside():
            self._inner.put(value)

    def end(self) -> None:
        with self._prompt.call.aside():
            self._inner.end()


def _sees_scores_alone(processor: Any) -> bool:
    """The library's temperature, top-k and the like: no ids have to be prepared for them."""
    kind = type(processor)
    return kind.__module__.startswith(_TRANSFORMERS) and kind.__name__.endswith("LogitsWarper")
