"""Other people's packages: what they add to Tango, announced by entry points or imported by name.

A package registers its methods, models and kinds of saliency when its modules are imported, and announces those modules
in its `pyproject.toml`, under one of `tango.methods`, `tango.models` and `tango.saliency`:

    [project.entry-points."tango.methods"]
    centre = "my_package.centre"

Each registry loads its own group once, as late as it can: when it is asked for all names, or for one it does not have.
"""

from __future__ import annotations

import traceback
from importlib import import_module
from importlib.metadata import entry_points
from logging import getLogger
from threading import RLock

from tango.errors import TangoError

log = getLogger(__name__)

_LOCK = RLock()  # reentrant: a package that is being loaded may ask for names
_LEFT_OUT: dict[str, str] = {}  # group that was loaded -> what `load_group` returned
_IMPORTED: dict[str, None] = {}  # names, in order
_PACKAGES: set[str] = set()  # top-level names of all that was loaded or imported


def load_group(group: str) -> str:
    """Import what installed packages announce under an entry-point group, once per process.

    A package that cannot be imported is left out, and one line of the log, which goes to stderr, names it.

    Returns:
        Which packages were left out and why, as the `note` of an UnknownNameError; "" if none was.
    Example:
        >>> load_group("tango.saliency")
        ''
    """
    with _LOCK:
        if group not in _LEFT_OUT:
            _LEFT_OUT[group] = ""
            for entry in sorted(entry_points(group=group)):
                _PACKAGES.add(entry.module.partition(".")[0])
                try:
                    entry.load()
                except (Exception, SystemExit) as error:
                    package = entry.module if entry.dist is None else entry.dist.name
                    left_out = f"left out the package {package}: {_reason(error)}"
                    log.warning("tango: %s", left_out)
                    _LEFT_OUT[group] += f"; {left_out}"
        return _LEFT_OUT[group]


def import_packages(*names: str) -> None:
    """Import packages or modules by name, for what they register. Doing it twice is harmless.

    Args:
        names: names of packages; one string may hold several, separated by commas.
    Raises:
        TangoError: one cannot be imported; the message says where it failed.
    Example:
        >>> import_packages("my_package, another.module")
        Traceback (most recent call last):
        tango.errors.TangoError: cannot import 'my_package': ModuleNotFoundError: No module named 'my_package'. ...
    """
    for name in filter(None, (name.strip() for text in names for name in text.split(","))):
        try:
            import_module(name)
        except (Exception, SystemExit) as error:
            raise TangoError(
                f"cannot import {name!r}: {_reason(error)}. Expected the name of a Python package or module that is "
                "installed, or whose folder is in PYTHONPATH"
            ) from error
        _IMPORTED.setdefault(name)
        _PACKAGES.add(name.partition(".")[0])


def imported() -> list[str]:
    """What `import_packages` imported, so that other processes can import the same."""
    return list(_IMPORTED)


def owner(error: BaseException) -> str | None:
    """The innermost package of others whose code raised an error or was passed by it; None: only ours was."""
    modules = [frame.f_globals.get("__name__", "") for frame, _line in traceback.walk_tb(error.__traceback__)]
    found = [name.partition(".")[0] for name in modules]
    return next((name for name in reversed(found) if name in _PACKAGES), None)


def _reason(error: BaseException) -> str:
    """An error in one line, with the file and line that raised it."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    last = traceback.extract_tb(error.__traceback__)[-1]
    return text if last.filename.startswith("<frozen") else f"{text} ({last.filename}, line {last.lineno})"
