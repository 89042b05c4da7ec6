#!/usr/bin/env bash
# Set up a virtual environment and run the tests. Arguments go to pytest; TRANSFORMERS=5.17.0 tests another release.
source "$(dirname "$0")/environment.sh"
if [ $# -eq 0 ]; then
    ruff check .
    ruff format --check .
    mypy
fi
exec python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
