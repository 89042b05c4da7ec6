#!/usr/bin/env bash
# What run_eval_{ov,video,qwen}.sh share: every method at every ratio, one run of run.py each.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash run_eval_{ov,video,qwen}.sh [FLAG ...]

Evaluates every method at every ratio and prints a table of the accuracies. Answers are kept as they come: the same
command again resumes, after whatever ended it. Flags go to run.py (python run.py -h lists them), among them --reuse,
which says of the toolkit's results what holds here anyway, and --import PKG, which makes a package's methods known.

  METHODS    "none tango" by default; "none" keeps all tokens and runs once. tango methods lists the others.
  RATIOS     "0.1 0.15 0.2"
  DATASETS   "Video-MME MVBench LongVideoBench MLVU_MCQ" or some of them
  GPUS       "0,1,2,3" for example; all visible ones by default. Without any: the CPU
  PROCESSES  one per GPU by default, one on the CPU
  MODEL      checkpoint, hub id or folder, in place of the one in CONFIG
  OUTPUT     outputs
  LIMIT      only the first so many questions of each data set
  EXTRA      more flags for run.py, e.g. "--batch-size 4"
  CONFIG     the JSON file with model and data sets, or its name, such as llava-onevision-7b
  PRUNED_LAYER  prune again inside the LLM, at the input of this layer (18 for LLaVA-Video)
  PYTHON     python
  TANGO_IMPORT  packages to import first, with commas between, as --import does

Several nodes: the same command on each, with NNODES, NODE_RANK (from 0), MASTER_ADDR and MASTER_PORT (29500), and
OUTPUT in a folder that all of them see.

The exit code is 0 if all went well, 1 if a run or a data set failed (the others are still evaluated), 2 (with several
processes: 1) for a mistake in the settings.
END
}

for flag in "$@"; do
    case $flag in -h | --help) usage; exit 0 ;; esac
done
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python}
: "${CONFIG:?is not set; start one of run_eval_ov.sh, run_eval_video.sh and run_eval_qwen.sh}"

case $CONFIG in *.json) ;; *) CONFIG=run_config/$(tr 'A-Z.-' 'a-z__' <<<"$CONFIG").json ;; esac

count_gpus() {
    local visible=${GPUS-${CUDA_VISIBLE_DEVICES-all}}
    if [ "$visible" = all ]; then
        (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l
    else
        tr ',' '\n' <<<"$visible" | grep -c . || true
    fi
}

[ -z "${GPUS+set}" ] || export CUDA_VISIBLE_DEVICES=$GPUS
processes=${PROCESSES:-$(count_gpus)}
[ "$processes" -gt 0 ] || processes=1
launch=("$PYTHON")
if [ "${NNODES:-1}" -gt 1 ]; then
    launch=("$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node-rank "${NODE_RANK:?}"
        --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}" --nproc-per-node "$processes")
elif [ "$processes" -gt 1 ]; then
    launch=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$processes")
fi

OUTPUT=${OUTPUT:-outputs}
shared=(--config "$CONFIG" --work-dir "$OUTPUT")
[ -z "${MODEL:-}" ] || shared+=(--pretrained "$MODEL")
[ -z "${LIMIT:-}" ] || shared+=(--limit "$LIMIT")
# shellcheck disable=SC2206 # lists of words
[ -z "${DATASETS:-}" ] || shared+=(--datasets $DATASETS)
# shellcheck disable=SC2206
shared+=(${EXTRA:-} "$@")

# What is started here ends with this script, whatever ends it (SIGKILL, too), where setpriv can see to that.
tied=()
! setpriv --pdeathsig KILL true 2>/dev/null || tied=(setpriv --pdeathsig KILL)

failed=()
evaluate() {
    local code=0
    echo "== $*" >&2
    "${tied[@]}" "${launch[@]}" run.py "${shared[@]}" "$@" || code=$?
    [ "$code" -ne 2 ] || exit 2
    [ "$code" -eq 0 ] || failed+=("$*")
}

for method in ${METHODS:-none tango}; do
    if [ "$method" = none ]; then
        evaluate --method none
        continue
    fi
    for ratio in ${RATIOS:-0.1 0.15 0.2}; do
        evaluate --method "$method" --retain-ratio "$ratio" ${PRUNED_LAYER:+--pruned-layer "$PRUNED_LAYER"}
    done
done

[ "${NODE_RANK:-0}" -gt 0 ] || "$PYTHON" -m tango_vlmeval.summary "$OUTPUT"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
