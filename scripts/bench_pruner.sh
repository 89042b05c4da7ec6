#!/usr/bin/env bash
# Times the pruner per stage and against plain code; see --help. For example:
#   scripts/bench_pruner.sh --frames 32 64 128 256 512 1024 --data video --output results/bench_pruner.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/imports.sh
exec "${PYTHON:-python}" -m tango.cli "${imports[@]}" bench pruner "$@"
