"""Errors that a user can cause. Each says what was got, what was expected and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TangoError(Exception):
    """Base of every error that Tango raises for a user's mistake (as opposed to a defect of Tango)."""


class UnknownNameError(TangoError, ValueError):
    """A name (method, option, backend, model) is not one of the known ones."""

    def __init__(self, kind: str, got: str, known: Iterable[str]):
        names = sorted(known)
        close = get_close_matches(str(got), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {got!r}.{hint} Known: {', '.join(names)}")


class OptionError(TangoError, ValueError):
    """An option has a value that it cannot have."""


class UnsupportedModelError(TangoError, TypeError):
    """The model is of a family, or in a configuration, that no adapter handles."""


class MissingSignalError(TangoError, ValueError):
    """A method needs a signal (saliency, frame embeddings) that the input does not carry."""


class BudgetError(TangoError, ValueError):
    """A retention ratio or token count cannot be met."""


class CheckpointError(TangoError):
    """A checkpoint's files cannot be used: missing, damaged, of another kind, or not those that `config.json` says."""


class WriteError(TangoError, OSError):
    """A file cannot be written; the message names it and says what was kept."""


class VideoReadError(TangoError, OSError):
    """A video file cannot be read.

    Attributes:
        path: the file as the user named it.
        reason: why, in one line.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(f"cannot read video {str(path)!r}: {reason}")
        self.path, self.reason = str(path), reason


class DamagedVideoWarning(UserWarning):
    """FFmpeg complained of a video, yet gave all its frames: what players show, perhaps not what was filmed."""
