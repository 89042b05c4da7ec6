#!/usr/bin/env bash
# What breaks next: builds an environment without the locks, from the short lists and the bounds in pyproject.toml alone,
# prints the versions that it took, and runs the tests in it. It is built anew each time.
#
#   scripts/newest.sh [arguments of pytest]    the plain environment (.venv-newest)
#   TOOLKITS=1 scripts/newest.sh               with both toolkits, and the tests that launch them
#
# PYTHON is the interpreter to build it with (python3), VENV where it lives, TEST_PROCESSES how many tests run at once (2).
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
set -euo pipefail
cd "$(dirname "$0")/.."
TOOLKITS=${TOOLKITS:-}
VENV=${VENV:-.venv-newest${TOOLKITS:+-toolkits}}
rm -rf "$VENV"
"${PYTHON:-python3}" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --upgrade pip uv
source scripts/index.sh "$VENV/bin/python"
PATH="$(cd "$VENV/bin" && pwd):$PATH"
if [ -n "$TOOLKITS" ]; then
    install=(-r requirements-toolkits.in -e . -e ./lmms-eval -e ./VLMEvalKit)
    tests=(tests/toolkits --need-toolkits)
else
    install=(-r requirements.in -e ".[dev]")
    tests=(--ignore tests/toolkits)
fi
uv pip install --quiet --python "$VENV/bin/python" "${install[@]}"
echo "Newest of $(date -u +%F), $(python --version):"
uv pip freeze --quiet --python "$VENV/bin/python" | grep -v "^-e"
[ $# -gt 0 ] || set -- "${tests[@]}"
exec python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
