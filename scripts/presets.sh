#!/usr/bin/env bash
# Compares variants of Tango with each other, and both ways to number positions after pruning.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash scripts/presets.sh [FLAG ...]

Runs tango, tango-paper, tango-release, and tango without merging of static tokens, with VLMEvalKit: each with positions
counted anew after pruning ("contiguous", as in the paper's release) and with those of the unpruned prompt ("kept").
Prints accuracies, tokens kept, and paired differences to tango, and writes them as presets.md and presets.json. Answers
are kept as they come: the same command again resumes. Flags go to VLMEvalKit/run.py.

  RATIOS    "0.1" by default
  LIMIT     only the first so many questions (all)
  CONFIG    JSON file with the model and data sets, below VLMEvalKit/, or its name (tango-mini); positions can be kept
            with LLaVA-OneVision and LLaVA-Video
  DATASETS  VLMEvalKit's data sets to run (TangoMini)
  OUTPUT    outputs/presets
  PYTHON    python

MODEL (the checkpoint), GPUS, PROCESSES, EXTRA, TANGO_IMPORT and those for several nodes are as in VLMEvalKit/run_eval.sh.
END
}

for flag in "$@"; do
    case $flag in -h | --help) usage; exit 0 ;; esac
done
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHON=${PYTHON:-python} CONFIG=${CONFIG:-tango-mini} RATIOS=${RATIOS:-0.1} PRUNED_LAYER=
export DATASETS=${DATASETS:-TangoMini} OUTPUT=${OUTPUT:-outputs/presets}
case $OUTPUT in /*) ;; *) OUTPUT=$here/$OUTPUT ;; esac

# What is started here ends with this script, whatever ends it (SIGKILL, too), where setpriv can see to that.
tied=()
! setpriv --pdeathsig KILL true 2>/dev/null || tied=(setpriv --pdeathsig KILL)

failed=0
evaluate() {
    local code=0
    METHODS=$1 "${tied[@]}" bash VLMEvalKit/run_eval.sh "${@:2}" || code=$?
    [ "$code" -ne 2 ] || exit 2 # a mistake in the settings
    [ "$code" -eq 0 ] || failed=1
}
evaluate "none tango tango-paper tango-release" "$@"
evaluate tango --option static_merging=false "$@"
evaluate "tango tango-paper tango-release" --option positions=kept "$@"
evaluate tango --option positions=kept --option static_merging=false "$@"
[ "${NODE_RANK:-0}" -eq 0 ] || exit "$failed"

source scripts/imports.sh
tango() { "$PYTHON" -m tango.cli "${imports[@]}" "$@"; }
tango runs --results "$OUTPUT" --against tango --json >"$OUTPUT/.presets.json"
tango runs --results "$OUTPUT" --against tango >"$OUTPUT/.presets.md"
mv "$OUTPUT/.presets.json" "$OUTPUT/presets.json"
mv "$OUTPUT/.presets.md" "$OUTPUT/presets.md"
cat "$OUTPUT/presets.md"
exit "$failed"
