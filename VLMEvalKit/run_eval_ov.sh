#!/usr/bin/env bash
# LLaVA-OneVision-7B on the four benchmarks; -h explains.
CONFIG=run_config/llava_onevision_7b.json exec bash "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh" "$@"
