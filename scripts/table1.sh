#!/usr/bin/env bash
# Runs and writes Table 1 of the paper; -h explains.
TABLE=1 exec bash "$(dirname "${BASH_SOURCE[0]}")/run_table.sh" "$@"
