#!/usr/bin/env bash
# Runs and writes Table 2 of the paper; -h explains.
TABLE=2 exec bash "$(dirname "${BASH_SOURCE[0]}")/run_table.sh" "$@"
