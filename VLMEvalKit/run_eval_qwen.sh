#!/usr/bin/env bash
# Qwen2.5-VL-7B on the four benchmarks; -h explains.
CONFIG=run_config/qwen2_5_vl_7b.json exec bash "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh" "$@"
