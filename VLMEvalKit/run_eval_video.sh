#!/usr/bin/env bash
# LLaVA-Video-7B on the four benchmarks, pruned again at layer 18, where half of the tokens go on; what enters the LLM
# is solved so that the mean over the layers is the ratio asked for. PRUNED_LAYER= prunes pre-LLM only.
CONFIG=run_config/llava_video_7b.json PRUNED_LAYER=${PRUNED_LAYER-18} \
    exec bash "$(dirname "${BASH_SOURCE[0]}")/run_eval.sh" "$@"
