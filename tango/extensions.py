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

_LOCK = RLock()  # of one thread many times: a package that is being loaded may ask for names
_LEFT_OUT: dict[str, str] = {}  # of each group that was loaded
_IMPORTED: dict[str, None] = {}  # by name, in order
_PACKAGES: set[str] = set()  # top-level names of all that was loaded or imported


def load_group(group: str) -> str:
    """Import what installed packages announce under an entry-point group, once per process.

    A package that cannot be imported is named in one line of the log, which goes to stderr, and is left out.

    Returns:
        Which packages were left out and why, to be put behind an error that a name is unknown; "" if none was.
    Example:
        if name not in _METHODS:
            note = load_group("tango.methods")
        if name not in _METHODS:
            raise UnknownNameError("method", name, _METHODS, note)
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
        names: of packages; one text may hold several, with commas between.
    Raises:
        TangoError: one cannot be imported; the message says where it failed.
    Example:
        import_packages("my_package", environ.get("TANGO_IMPORT", ""))
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
    """What `import_packages` imported, for processes that are to know the same names."""
    return list(_IMPORTED)


def owner(error: BaseException) -> str | None:
    """The package whose code an error came out of or passed through, the innermost; None: none but ours."""
    modules = [frame.f_globals.get("__name__", "") for frame, _line in traceback.walk_tb(error.__traceback__)]
    found = [name.partition(".")[0] for name in modules]
    return next((name for name in reversed(found) if name in _PACKAGES), None)


def _reason(error: BaseException) -> str:
    """An error in one line, with the place in the source that it came from."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    last = traceback.extract_tb(error.__traceback__)[-1]
    return text if last.filename.startswith("<frozen") else f"{text} ({last.filename}, line {last.lineno})"
