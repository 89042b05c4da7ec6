#!/usr/bin/env bash
# The reliability scorecard: damaged files, kills, odd and hostile inputs; minutes on two cores. See --help. For example:
#   scripts/reliability.sh                  # everything; the table goes to results/reliability.json and .md
#   scripts/reliability.sh --only R1,R5     # some checks; nothing is written
#   scripts/reliability.sh --full           # an hour
# Exit code 0 only if every target is met.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case " $* " in
*" --only"* | *" --corpus"*) ;;
*) set -- --output results/reliability.json "$@" ;;
esac
exec "${PYTHON:-python}" -m tango.cli bench reliability "$@"
