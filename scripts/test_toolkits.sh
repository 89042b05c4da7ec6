#!/usr/bin/env bash
# Set up a virtual environment with lmms-eval and VLMEvalKit (TOOLKITS_VENV, .venv-toolkits) and run the tests that
# launch them as a user would. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
cd "$(dirname "$0")/.."
TOOLKITS=1 VENV=${TOOLKITS_VENV:-}
source scripts/environment.sh
exec python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile tests/toolkits --need-toolkits "$@"
