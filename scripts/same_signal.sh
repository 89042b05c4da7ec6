#!/usr/bin/env bash
# Runs and writes the table in which all methods that read saliency read the same one; -h explains.
TABLE=same_signal exec bash "$(dirname "${BASH_SOURCE[0]}")/run_table.sh" "$@"
