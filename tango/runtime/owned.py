"""What pruning changes on one model: methods of the instance, and a guard before the LLM."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tango.errors import TangoError
from tango.models.calls import has_any


def replace_method(model: nn.Module, name: str, call: Callable[..., object]) -> Callable[[], None]:
    """Replace a method of one instance by `call`, which gets the arguments without the instance; return the undoing.

    The instance gets a bound method, as its class would give it: others take the function of a method, wrap it and bind
    the result again (mixed precision does). It has no `__wrapped__`, which would lead them to the stock method.
    """
    stock = getattr(model, name)

    def method(_model: nn.Module, *args: Any, **kwargs: Any) -> object:
        return call(*args, **kwargs)

    functools.update_wrapper(method, stock)
    vars(method).pop("__wrapped__")
    signature = inspect.signature(stock)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[first, *signature.parameters.values()]
    )
    before = {name: vars(model)[name]} if name in vars(model) else {}
    vars(model)[name] = types.MethodType(method, model)

    def undo() -> None:
        if getattr(vars(model).get(name), "__func__", None) is not method:
            warnings.warn(f"{name} was replaced after pruning began and is left as it is, unpruned", stacklevel=2)
            return
        del vars(model)[name]
        vars(model).update(before)

    return undo


class PlaceholderGuard:
    """A hook of the input embeddings that refuses the placeholders of what is pruned: they must not be read as words.

    It catches calls that bypass the methods that prune, such as those of a wrapper, or of a part of the model by
    itself. Single tokens are not checked, so decoding does not wait for the device.
    """

    def __init__(self, token_ids: Sequence[int], allowed: Callable[[], bool]):
        self._token_ids, self._allowed = token_ids, allowed

    def __call__(self, _embeddings: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and args[0].dim() > 1 and args[0].shape[1] > 1:
            self._check(args[0])

    def _check(self, ids: Tensor) -> None:
        if not self._allowed() and has_any(ids, self._token_ids):
            raise TangoError(
                "the model is pruned, but placeholders of a video reached its LLM without the pruned video (or image): "
                "call generate or forward of the very model that was pruned, with it beside the prompt; what was "
                "wrapped around it (adapters with learnt tokens, say) or called inside it does not prune"
            )

    def __deepcopy__(self, _memo: object) -> PlaceholderGuard:
        return self  # adapters that train the embeddings copy them, and the hook with them
