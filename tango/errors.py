"""Errors that a user can cause. Each says what was got, what was expected and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TangoError(Exception):
    """Base of every error that Tango raises for a user's mistake (as opposed to a defect of Tango).

    Errors survive pickle and copy with their text and attributes, so they also reach the parent of a pool's worker.

    Example:
        >>> try:
        ...     tango.load("no-such-folder")
        ... except tango.TangoError as error:
        ...     print(error)
        no checkpoint at 'no-such-folder': expected a folder with config.json, or a hub id owner/name
    """

    def __reduce__(self) -> tuple[object, ...]:
        # Python would call the class with the finished text, which is not what its __init__ takes.
        return _restored, (type(self), self.args, vars(self))


def _restored(cls: type[TangoError], args: tuple[object, ...], attributes: dict[str, object]) -> TangoError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class UnknownNameError(TangoError, ValueError):
    """A name (method, option, backend, model) is not one of the known ones.

    Args:
        note: what may explain the unknown name, such as `tango.extensions.load_group` returns.
    Example:
        >>> try:
        ...     tango.build_pruner("tngo")
        ... except tango.UnknownNameError as error:
        ...     print(error)
        unknown method 'tngo'. Did you mean 'tango'? Known: ...
    """

    def __init__(self, kind: str, got: str, known: Iterable[str], note: str = ""):
        names = sorted(known)
        close = get_close_matches(str(got), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {got!r}.{hint} Known: {', '.join(names)}{note}")


class OptionError(TangoError, ValueError):
    """An option has a value that it cannot have.

    Example:
        >>> try:
        ...     tango.build_pruner("tango", retention_ratio=0.1, alpha=0.5)
        ... except tango.OptionError as error:
        ...     print(error)
        alpha must lie in [1, inf], got 0.5
    """


class UnsupportedModelError(TangoError, TypeError):
    """The model is of a family, or in a configuration, that no adapter handles.

    Example:
        >>> try:
        ...     tango.prune(torch.nn.Linear(2, 2), "tango", retention_ratio=0.1)
        ... except tango.UnsupportedModelError as error:
        ...     print(error)
        no adapter for Linear (model type None). Supported: ...
    """


class MissingSignalError(TangoError, ValueError):
    """A method needs a signal (saliency, frame embeddings) that the input does not carry.

    Example:
        >>> from dataclasses import replace
        >>> try:
        ...     tango.build_pruner("tango", retention_ratio=0.1)(replace(tokens, saliency=None))
        ... except tango.MissingSignalError as error:
        ...     print(error)
        tango needs saliency (T, N); these tokens carry none
    """


class BudgetError(TangoError, ValueError):
    """A retention ratio or token count cannot be met.

    Example:
        >>> try:
        ...     tango.build_pruner("tango", retention_ratio=1.5)
        ... except tango.BudgetError as error:
        ...     print(error)
        retention_ratio must lie in (0, 1], got 1.5. 0.1 keeps one token in ten
    """


class NotFiniteError(TangoError, ValueError):
    """A model's features of a video hold NaN or infinity."""


class CheckpointError(TangoError):
    """A checkpoint's files cannot be used: missing, damaged, of another kind, or not as `config.json` says.

    Example:
        >>> try:
        ...     tango.load(".")
        ... except tango.CheckpointError as error:
        ...     print(error)
        . is no checkpoint: it has no config.json
    """


class WriteError(TangoError, OSError):
    """A file cannot be written; the message names it and says what was kept.

    Example:
        >>> import tango.evaluation
        >>> try:
        ...     tango.evaluation.write_json("clip.mp4/run.json", {})
        ... except tango.WriteError as error:
        ...     print(error)
        cannot write 'clip.mp4/run.json': ...; what was there before is untouched
    """


class PromptError(TangoError, ValueError):
    """A conversation cannot become a prompt: a text holds a reserved token, or placeholders and media do not match.

    Example:
        >>> try:
        ...     tango.answer(model, processor, "clip.mp4", "What is <video>?")
        ... except tango.PromptError as error:
        ...     print(error)
        the text of message 0 (user) holds '<video>', a token with a meaning of its own for this model; ...
    """


class VideoReadError(TangoError, OSError):
    """A video, or an image beside it, cannot be read.

    Attributes:
        path: the file as the user named it; anything else that was given, in angle brackets, such as "<bytes>".
        reason: why, in one line.
    Example:
        >>> try:
        ...     tango.read_video("missing.mp4", num_frames=4)
        ... except tango.VideoReadError as error:
        ...     print(error)
        cannot read video 'missing.mp4': no such file; check the path (an address must be downloaded first)
    """

    def __init__(self, path: object, reason: str):
        super().__init__(f"cannot read video {str(path)!r}: {reason}")
        self.path, self.reason = str(path), reason


class MissingPartError(TangoError, AttributeError):
    """Tango lacks this part of another library's interface; the message names what to use."""


class DamagedVideoWarning(UserWarning):
    """FFmpeg complained of a video, yet gave all its frames: what players show, perhaps not what was filmed.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", tango.DamagedVideoWarning)  # refuse such videos
        ...     video = tango.read_video("clip.mp4", num_frames=4)
    """
