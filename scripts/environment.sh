# Sourced by the other scripts: puts a virtual environment with Tango in it at the front of PATH.
#
#   PYTHON        interpreter to build it with (python3)
#   VENV          where it lives (.venv)
#   TRANSFORMERS  another transformers release than the tested one
#
# It is built once, and anew when the requirements change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv${TRANSFORMERS:+-transformers-$TRANSFORMERS}}

"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "Tango needs Python 3.10 to 3.13; $("$PYTHON" --version) found. Set PYTHON to another interpreter." >&2
    exit 2
}

stamp=$(cat requirements.txt pyproject.toml scripts/environment.sh | sha256sum | cut -c1-16)-${TRANSFORMERS:-tested}
if [ "$(cat "$VENV/tango-stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "Setting up $VENV (a few minutes the first time) ..." >&2
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/python" -m pip install --quiet --upgrade pip "setuptools>=77"
    "$VENV/bin/python" -m pip install --quiet -r requirements.txt
    [ -z "${TRANSFORMERS:-}" ] || "$VENV/bin/python" -m pip install --quiet "transformers==$TRANSFORMERS"
    PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip install --quiet --no-build-isolation -e ".[dev]"
    echo "$stamp" >"$VENV/tango-stamp"
else # the environment may have been built for another clone
    PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip install --quiet --no-build-isolation --no-deps -e .
fi
PATH="$(cd "$VENV/bin" && pwd):$PATH"
