#!/usr/bin/env bash
# Runs and writes Table 3 of the paper; -h explains.
TABLE=3 exec bash "$(dirname "${BASH_SOURCE[0]}")/run_table.sh" "$@"
