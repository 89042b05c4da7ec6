"""The process that runs checks: it writes one line of JSON per finding to stdout, whatever the libraries print."""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib import import_module

from tango.doctor import Finding


def one_line(error: BaseException) -> str:
    """An error with its type, in one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].removesuffix(": ")


def main() -> None:
    """Run the checks named on the command line, whose arguments are sys.path, a module and names of checks."""
    _, _, module, *names = sys.argv
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what libraries print goes to stderr
        warnings.simplefilter("ignore")
        for name in names:
            try:
                finding = getattr(import_module(f"tango.doctor.{module}"), name)()
            except Exception as error:
                finding = Finding(name, "failed", one_line(error), "see the line before; reinstall what it names")
            print(json.dumps(finding._asdict()), file=out, flush=True)
        out.flush()
        os._exit(0)  # some libraries crash or hang when they are torn down
