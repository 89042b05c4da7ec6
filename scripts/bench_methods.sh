#!/usr/bin/env bash
# Times all methods on the same tokens, in alternating runs; see --help. Options given here win over the ones below. For example:
#   scripts/bench_methods.sh --repeats 7 --markdown --output results/bench_methods.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/imports.sh
exec "${PYTHON:-python}" -m tango.cli "${imports[@]}" bench methods --frames 32 --grid 14x14 --dim 3584 --threads 1 "$@"
