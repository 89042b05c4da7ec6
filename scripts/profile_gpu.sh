#!/usr/bin/env bash
# Profiles LLaVA-OneVision-7B end to end on one CUDA GPU and writes results/profile_<gpu>.json.
#
# Random weights of the published shape, made on the GPU: nothing is downloaded, and times, memory and token counts are
# those of the real model. 32 made-up frames, bfloat16; all tokens, and tango at 0.1, 0.15 and 0.2; the tower with SDPA
# and, as the paper's release ran it, with eager attention. Needs torch with CUDA, transformers, accelerate and about
# 30 GB on the GPU. It stops after ten minutes at the latest; what was measured until then is in the file.
#
#   bash scripts/profile_gpu.sh                          options given here win over the ones below
#   tango profile --record results/profile_<gpu>.json --markdown --plot profile.png      shows it again, anywhere
#
#   PYTHON    interpreter (python)
#
# Not yet run on a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
gpu=$("$python" -c 'import re, torch; print(re.sub("[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()))' 2>/dev/null) || {
    echo "$python needs torch and a CUDA GPU; set PYTHON to another interpreter, or run this on a machine with both." >&2
    exit 2
}
exec timeout --signal=INT --kill-after=10 580 "$python" -m tango.cli profile --random-weights llava-onevision-7b \
    --device cuda --dtype bfloat16 --num-frames 32 --methods none,tango --ratios 0.1,0.15,0.2 \
    --tower-attn-implementation sdpa,eager --repeats 7 --max-new-tokens 32 \
    --markdown --output "results/profile_$gpu.json" "$@"
