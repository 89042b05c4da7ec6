"""How a pruned model decodes: the static cache's length, and when the step may be compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import GenerationConfig

_LONGEST = (
    "_previous_max_cache_length"  # transformers' note on a model: a static cache is never shorter than those before
)
# With these, transformers runs prompts, too, through the compiled step.
_PROMPT_IN_THE_STEP = ("prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


def decoding_options(*, static_cache: bool) -> dict[str, object]:
    """The options of `generate` for this kind of cache.

    With a static cache of fixed length, transformers compiles the decoding step on a GPU: the first call waits for
    that, later ones decode faster.
    """
    return {"cache_implementation": "static"} if static_cache else {}


def separate_cache_length(model: nn.Module) -> Callable[[], None]:
    """Let static caches be as long as prompts need from now on; return the undoing.

    Otherwise a short prompt's would be as long as the longest before it, and each step would read all of that.
    """
    before = {_LONGEST: vars(model).pop(_LONGEST)} if _LONGEST in vars(model) else {}

    def undo() -> None:
        vars(model).pop(_LONGEST, None)
        vars(model).update(before)

    return undo


def compiling_options(arguments: Mapping[str, Any], defaults: GenerationConfig, *, inside: bool) -> dict[str, object]:
    """What switches compilation off where the step would pass hooks of ours: compiled code does not notice hooks.

    Args:
        arguments: those of `generate`.
        inside: whether tokens are pruned inside the LLM, whose hooks every step needs.
    """
    config = arguments.get("generation_config") or defaults
    given = (arguments.get(name) or getattr(config, name, None) for name in _PROMPT_IN_THE_STEP)
    return {"disable_compile": True} if inside or any(given) else {}
