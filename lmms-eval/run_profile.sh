#!/usr/bin/env bash
# Efficiency of full tokens and of pruning methods, measured with lmms-eval on one model.
#
#   bash run_profile.sh                                              # full tokens, then tango at 0.1, 0.15 and 0.2
#   METHODS="tango holitom" RATIOS="0.1" LIMIT=64 bash run_profile.sh
#
# Environment:
#   METHODS        methods, separated by spaces; "none" is full tokens       (none tango)
#   RATIOS         retention ratios for every method but none                (0.1 0.15 0.2)
#   FAMILY         llava_onevision, llava_vid or qwen2_5_vl                  (llava_onevision)
#   MODEL          checkpoint, hub id or local folder                        (the paper's of FAMILY)
#   TASKS          lmms-eval tasks, separated by commas                      (videomme)
#   BATCH_SIZE     questions generated together                              (1)
#   LIMIT          questions per task                                        (all)
#   OUTPUT         folder; each run has its own below it                     (./logs)
#   MODEL_ARGS     more model arguments, e.g. max_frames_num=64,workers=4
#   NUM_PROCESSES  processes on this machine                                 (one per visible GPU; 1 on a CPU)
#   LAUNCH_ARGS    more arguments of accelerate launch. Several machines, on each with its own rank, and OUTPUT on a
#                  file system that all of them see:
#                  NUM_PROCESSES=16 LAUNCH_ARGS="--num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 \
#                      --main_process_port 29500" bash run_profile.sh
#   TANGO_*        options of the methods, e.g. TANGO_ALPHA=2.0
#   TANGO_IMPORT   packages to import first, with commas between, for the methods and models that they register
#
# Each run prints the table and leaves it as OUTPUT/<method>-<ratio>/<checkpoint>/<time>_efficiency.json, beside
# lmms-eval's results. Started again, runs keep the answers that they have (remove OUTPUT to measure anew).
set -euo pipefail

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit
fi
[ $# -eq 0 ] || { echo "$0 takes no arguments, only environment variables; see $0 --help" >&2; exit 2; }

METHODS=${METHODS:-none tango}
RATIOS=${RATIOS:-0.1 0.15 0.2}
FAMILY=${FAMILY:-llava_onevision}
OUTPUT=${OUTPUT:-./logs}
if [ -n "${PRETRAINED:-}" ]; then
    echo "the checkpoint is called MODEL, as in all scripts: say MODEL=$PRETRAINED in place of PRETRAINED" >&2
    exit 2
fi
case ${MODEL:-} in
    llava_onevision | llava_vid | qwen2_5_vl) echo "MODEL=$MODEL names no checkpoint, which MODEL is; say FAMILY=$MODEL" >&2; exit 2 ;;
esac
case $FAMILY in
    llava_onevision) checkpoint=lmms-lab/llava-onevision-qwen2-7b-ov arguments=conv_template=qwen_1_5,model_name=llava_qwen ;;
    llava_vid) checkpoint=lmms-lab/LLaVA-Video-7B-Qwen2 arguments=conv_template=qwen_1_5 ;;
    qwen2_5_vl) checkpoint=Qwen/Qwen2.5-VL-7B-Instruct arguments= ;;
    *) echo "unknown FAMILY $FAMILY; known: llava_onevision, llava_vid, qwen2_5_vl" >&2; exit 2 ;;
esac
arguments=pretrained=${MODEL:-$checkpoint},attn_implementation=flash_attention_2${arguments:+,$arguments}${MODEL_ARGS:+,$MODEL_ARGS}

gpus=$(python -c "import torch; print(torch.cuda.device_count())")
NUM_PROCESSES=${NUM_PROCESSES:-$((gpus > 0 ? gpus : 1))}
launch=(accelerate launch --num_processes="$NUM_PROCESSES")
if [ "$NUM_PROCESSES" -gt 1 ]; then
    launch+=(--multi_gpu)
    [ "$gpus" -gt 0 ] || export ACCELERATE_USE_CPU=true # without it accelerate would start one process only
fi
read -ra extra <<<"${LAUNCH_ARGS:-}"

# What is started here ends with this script, whatever ends it (SIGKILL, too), where setpriv can see to that.
tied=()
! setpriv --pdeathsig KILL true 2>/dev/null || tied=(setpriv --pdeathsig KILL)

run() { # method, ratio or nothing
    local folder=$OUTPUT/$1${2:+-$2} before
    mkdir -p "$folder"
    before=$(find "$folder" -name '*_results.json')
    echo "== $FAMILY, $1${2:+ at $2}: $folder"
    WRAPPER=$1 TANGO_RETENTION_RATIO=${2:-} "${tied[@]}" "${launch[@]}" "${extra[@]}" -m lmms_eval --model "$FAMILY" \
        --model_args "$arguments" --tasks "${TASKS:-videomme}" --batch_size "${BATCH_SIZE:-1}" \
        ${LIMIT:+--limit "$LIMIT"} --log_samples --log_samples_suffix "$FAMILY" --output_path "$folder"
    if [ "$(find "$folder" -name '*_results.json')" = "$before" ]; then # lmms-eval exits with 0 after many an error
        echo "lmms-eval wrote no results to $folder; why, it says above" >&2
        exit 1
    fi
}

for method in $METHODS; do
    if [ "$method" = none ]; then
        run none
        continue
    fi
    for ratio in $RATIOS; do run "$method" "$ratio"; done
done
