"""The program `tango`: the installed command, and `python -m tango`."""

from __future__ import annotations

import sys

from tango.processes import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Run the command in `sys.argv`, as the whole of this process. Exit codes: those of `tango.cli.main`."""
    return run("tango", _load)


def _load() -> Callable[[], int]:
    from tango.cli import main as command

    return command


if __name__ == "__main__":
    sys.exit(main())
