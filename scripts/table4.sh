#!/usr/bin/env bash
# Runs and writes Table 4 of the paper; -h explains.
TABLE=4 exec bash "$(dirname "${BASH_SOURCE[0]}")/run_table.sh" "$@"
