#!/usr/bin/env bash
# Set up virtual environments and run all checks and tests, those with the evaluation toolkits in an environment of
# their own (TOOLKITS_VENV). Arguments go to pytest, which then runs only what they name, in the first environment;
# TRANSFORMERS=5.17.0 tests another release.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
set -euo pipefail
cd "$(dirname "$0")/.."
(
    source scripts/environment.sh
    if [ $# -eq 0 ]; then
        ruff check .
        ruff format --check .
        mypy
    fi
    python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
)
[ $# -gt 0 ] || bash scripts/test_toolkits.sh
