"""The caller's own code inside a pruned `generate`: it sees the prompt that the caller gave, not the short one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tango.models.calls import Call
from tango.models.splice import ShortPrompt
from tango.ops.device import to_device

if TYPE_CHECKING:
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria
    from transformers.generation.streamers import BaseStreamer
    from transformers.generation.utils import GenerateOutput
    from transformers.utils import ModelOutput

_LENGTHS = {
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
}  # option for the total length: option for new tokens, which takes precedence
_TRANSFORMERS = "transformers.generation."


class CallersPrompt:
    """The prompt (B, L) that a caller gave to `generate`, while stock code runs on a short one of S columns.

    The caller's stopping criteria and streamers, and all logits processors (those that `generate` itself makes from its
    options, too), get ids that begin with the caller's prompt. While they run, the call stands aside.
    """

    def __init__(self, ids: Tensor, short_length: int, call: Call):
        self.call = call
        self._ids, self._short_length = ids, short_length
        self._converted: tuple[Tensor, Tensor] | None = None  # the latest ids: one step asks several times

    @property
    def saved(self) -> int:
        """Number of columns that pruning removed, L - S."""
        return self._ids.shape[1] - self._short_length

    def extended(self, ids: Tensor) -> Tensor:
        """Ids with the short prompts replaced by the caller's; a prompt's beams or samples stand in adjacent rows."""
        if self._converted is None or self._converted[0] is not ids:
            self._ids = to_device(self._ids, ids.device)
            prompts = self._ids.repeat_interleave(len(ids) // len(self._ids), dim=0)
            self._converted = ids, torch.cat([prompts, ids[:, self._short_length :]], dim=1)
        return self._converted[1]

    def adapt(self, arguments: dict[str, Any], defaults: GenerationConfig) -> None:
        """Change arguments of `generate` in place: lengths fit the short prompt, the caller's code sees its own."""
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

    def processors(self, make: Callable[..., LogitsProcessorList], arguments: dict[str, Any]) -> LogitsProcessorList:
        """Build the logits processors as for the caller's prompt; `make` is the model's own way to build them."""
        config = copy.copy(arguments["generation_config"])
        for total in _LENGTHS:
            if value := getattr(config, total, None):
                setattr(config, total, value + self.saved)
        arguments = {**arguments, "generation_config": config}
        if arguments.get("input_ids_seq_length") is not None:
            arguments["input_ids_seq_length"] += self.saved
        if config.encoder_repetition_penalty in (None, 1.0) and not config.encoder_no_repeat_ngram_size:
            arguments["encoder_input_ids"] = None  # nothing else looks at them, and stock code would read them
        elif arguments.get("encoder_input_ids") is not None:
            arguments["encoder_input_ids"] = self.extended(arguments["encoder_input_ids"])
        processors = make(**arguments)
        return type(processors)(p if _sees_scores_alone(p) else _Processor(p, self) for p in processors)

    def _criterion(self, criterion: StoppingCriteria) -> StoppingCriteria | _Criterion:
        """Show the caller's own criterion the caller's prompt.

        A criterion of transformers is not wrapped, so that it replaces the one that `generate` makes. It looks only at
        the length, which is corrected here, and at the latest tokens.
        """
        if not type(criterion).__module__.startswith(_TRANSFORMERS):
            return _Criterion(criterion, self)
        if isinstance(getattr(criterion, "max_length", None), int):
            criterion = copy.copy(criterion)
            criterion.max_length -= self.saved
        return criterion

    def before(self, output: GenerateOutput | Tensor) -> GenerateOutput | Tensor:
        """Put the caller's prompt in front of the new tokens in what `generate` returned."""
        sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        if not isinstance(sequences, Tensor):
            return output  # a `custom_generate` returned something else
        sequences = self.extended(sequences)
        if isinstance(output, Tensor):
            return sequences
        output.sequences = sequences
        return output


class _Seen:
    """Stands in for the caller's object: every attribute is that object's, only the ids it is called with change."""

    def __init__(self, inner: LogitsProcessor | StoppingCriteria | BaseStreamer, prompt: CallersPrompt):
        self._inner, self._prompt = inner, prompt

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["_inner"], name)


class _Processor(_Seen):
    """A logits processor. Lists of processors inspect the signature, so it has these two parameters and no others."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        with self._prompt.call.aside():
            return self._inner(self._prompt.extended(input_ids), scores)


class _Criterion(_Seen):
    """A stopping criterion."""

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: Any) -> Tensor:
        with self._prompt.call.aside():
            return self._inner(self._prompt.extended(input_ids), scores, **kwargs)


class _Streamer(_Seen):
    """A streamer. The first ids that it gets are the caller's prompt."""

    def __init__(self, inner: BaseStreamer, prompt: CallersPrompt):
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


def _sees_scores_alone(processor: LogitsProcessor) -> bool:
    """Whether no ids need be prepared for it: transformers' temperature, top-k and the like do not read them."""
    kind = type(processor)
    return kind.__module__.startswith(_TRANSFORMERS) and kind.__name__.endswith("LogitsWarper")


def with_long_logits(
    output: ModelOutput | tuple, short: ShortPrompt, wanted: int | Tensor, *, labelled: bool
) -> ModelOutput | tuple:
    """Spread logits to the length of the caller's ids, so that the caller's losses and metrics fit them."""

    def long(logits: Tensor) -> Tensor:
        rows = short.spread(logits)
        return rows[:, wanted] if isinstance(wanted, Tensor) else rows[:, -wanted:] if wanted else rows

    if isinstance(output, tuple):  # return_dict=False
        return tuple(long(x) if i == int(labelled) else x for i, x in enumerate(output))
    if isinstance(getattr(output, "logits", None), Tensor):  # some kernels compute a loss without them
        output.logits = long(output.logits)
    return output
