"""Errors that a user can cause. Each says what was got, what was expected and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class TangoError(Exception):
    """Base of every error that Tango raises for a user's mistake (as opposed to a defect of Tango).

    Errors come through pickle and copy with their text and attributes: they reach the parent of a pool's worker.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Python would call the class with the finished text, which is not what its __init__ takes.
        return _restored, (type(self), self.args, vars(self))


def _restored(cls: type[TangoError], args: tuple[Any, ...], attributes: dict[str, Any]) -> TangoError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class UnknownNameError(TangoError, ValueError):
    """A name (method, option, backend, model) is not one of the known ones.

    Args:
        note: what may explain it, such as `tango.extensions.load_group` returns.
    """

    def __init__(self, kind: str, got: str, known: Iterable[str], note: str = ""):
        names = sorted(known)
        close = get_close_matches(str(got), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {got!r}.{hint} Known: {', '.join(names)}{note}")


class OptionError(TangoError, ValueError):
    """An option has a value that it cannot have."""


class UnsupportedModelError(TangoError, TypeError):
    """The model is of a family, or in a configuration, that no adapter handles."""


class MissingSignalError(TangoError, ValueError):
    """A method needs a signal (saliency, frame embeddings) that the input does not carry."""


class BudgetError(TangoError, ValueError):
    """A retention ratio or token count cannot be met."""


class NotFiniteError(TangoError, ValueError):
    """What a model made of a video holds NaN or infinity."""


class CheckpointError(TangoError):
    """A checkpoint's files cannot be used: missing, damaged, of another kind, or not those that `config.json` says."""


class WriteError(TangoError, OSError):
    """A file cannot be written; the message names it and says what was kept."""


class PromptError(TangoError, ValueError):
    """A conversation cannot become a prompt: a text holds a reserved token, or placeholders and media do not match."""


class VideoReadError(TangoError, OSError):
    """A video, or an image beside it, cannot be read.

    Attributes:
        path: the file as the user named it; what else was handed over in angle brackets, such as "<bytes>".
        reason: why, in one line.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(f"cannot read video {str(path)!r}: {reason}")
        self.path, self.reason = str(path), reason


class MissingPartError(TangoError, AttributeError):
    """A part of another library's interface that Tango does not have; the message names what to use."""


class DamagedVideoWarning(UserWarning):
    """FFmpeg complained of a video, yet gave all its frames: what players show, perhaps not what was filmed."""
