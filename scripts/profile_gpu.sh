#!/usr/bin/env bash
# Measures Tango on one CUDA GPU in at most six minutes: the pruner alone, then three models end to end. Writes JSON to
# results/ and prints Markdown.
#
# Random weights of the published shapes, made on the GPU: nothing is downloaded, and times, memory and token counts are
# those of the real models. bfloat16, made-up frames of 448 x 448. The pruner: 32 and 128 frames of scenes, of one long
# take, and of independent features. LLaVA-OneVision-7B and Qwen2.5-VL-7B (32 frames) beside stock transformers,
# LLaVA-Video-7B (64 frames) beside all tokens, since stock code refuses its inputs: all tokens, and tango at 0.1 and 0.2
# in turn; then tango at 0.1 with flash_attention_2 in the tower (where it is installed), with a static cache and with a
# compiled tower. A second table has the least time of every stage on this very GPU, from its measured ceilings.
# Each model is loaded once. Needs torch with CUDA, transformers, accelerate (and what these need), and about 30 GB on
# the GPU.
#
# Time is shared out: each step may take the same part of what is left. Files are whole after every round, so what was
# measured before a crash or the end of the time is in them. The exit status is 0 if every step ended by itself without
# a failed row, else 1.
#
#   bash scripts/profile_gpu.sh                          options given here go to the end-to-end steps and win
#   tango profile --record results/profile_<gpu>_llava-onevision-7b.json --markdown --plot profile.png   shows it again
#
#   PYTHON    interpreter (python)                       SIZE      of the models (7b)
#   RESULTS   folder for the files (results)             FRAMES    of the videos (each model's usual number)
#   DEVICE    cuda (cpu: to try the script out)          LIMIT_S   seconds for everything (350)
#   ALSO      settings for tango at 0.1 (flash static compiled)
#   RESUME    1: leave out what was measured to its end before
#   STEPS     which, with blanks between (pruner llava-onevision qwen2.5-vl llava-video)
#
#   DEVICE=cpu SIZE=tiny FRAMES=2 ALSO=static RESULTS=outputs/tried bash scripts/profile_gpu.sh --repeats 1
#
# Not yet run on a GPU in this form.
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python} results=${RESULTS:-results} device=${DEVICE:-cuda} size=${SIZE:-7b} limit_s=${LIMIT_S:-350}
read -ra steps <<<"${STEPS:-pruner llava-onevision qwen2.5-vl llava-video}"
also=${ALSO-flash static compiled} dtype=bfloat16 name=cpu
if [[ $device == cpu ]]; then
    dtype=float32
else
    find_name='import re, torch; print(re.sub("[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()))'
    name=$("$python" -c "$find_name" 2>/dev/null) || {
        echo "$python needs torch and a CUDA GPU; set PYTHON to another interpreter, or run this on a machine with both." >&2
        exit 2
    }
fi
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("flash_attn") is None)' >/dev/null || also=${also//flash/}
source scripts/imports.sh
SECONDS=0 failed=0 to_do=0

# Run `tango ...` for its part of the time that is left; `to_do` counts the steps that have not begun.
step() {
    local most=$(((limit_s - SECONDS) / to_do)) status=0
    ((to_do -= 1))
    if ((most <= 0)); then
        echo "no time left for: tango $*" >&2
        failed=1
        return 1
    fi
    timeout --signal=INT --kill-after=10 "$most" "$python" -m tango.cli "${imports[@]}" "$@" || status=$?
    if ((status != 0)); then
        echo "tango $1 ended with status $status after $SECONDS s in all (124: out of time; its file has what was done)" >&2
        failed=1
    fi
    return "$status"
}

# Whether a file is there with all its runs; only asked for with RESUME=1.
is_whole() {
    local code='import json, sys
record = json.load(open(sys.argv[1]))
sys.exit(any(row.get("error") or row.get("runs", 9**9) < record["config"]["repeats"] for row in record["rows"]))'
    [[ ${RESUME:-} == 1 && -e $1 ]] && "$python" -c "$code" "$1" && echo "measured before: $1"
}

# End to end into a file; what an interrupted run wrote is shown all the same.
profile() {
    local shape=$1-$size frames=$2 methods=$3 file=$results/profile_${name}_$1-$size.json status=0
    shift 3
    if is_whole "$file"; then
        ((to_do -= 1))
        return
    fi
    rm -f "$file"
    step profile --random-weights "$shape" --device "$device" --dtype "$dtype" --num-frames "${FRAMES:-$frames}" \
        --methods "$methods" --ratios 0.1,0.2 --also "${also// /,}" --roofline --repeats 5 --max-new-tokens 32 --markdown \
        --output "$file" "$@" || status=$?
    ((status >= 124)) && [[ -e $file ]] && "$python" -m tango.cli profile --record "$file" --markdown
    return 0
}

for one in "${steps[@]}"; do
    case $one in
        pruner) ((to_do += 3)) ;;
        llava-onevision | qwen2.5-vl | llava-video) ((to_do += 1)) ;;
        *)
            echo "unknown step '$one'; known: pruner llava-onevision qwen2.5-vl llava-video" >&2
            exit 2
            ;;
    esac
done
for one in "${steps[@]}"; do
    case $one in
        pruner)
            for data in video take iid; do
                file=$results/bench_pruner_${name}_$data.json frames=${FRAMES:-32}
                if is_whole "$file"; then
                    ((to_do -= 1))
                    continue
                fi
                step bench pruner --device "$device" --dtype "$dtype" --data "$data" --repeats 10 \
                    --frames "$frames" $((4 * frames)) --reference-up-to "$frames" --output "$file"
            done
            ;;
        llava-onevision | qwen2.5-vl) profile "$one" 32 stock,none,tango "$@" ;;
        llava-video) profile "$one" 64 none,tango "$@" ;;
    esac
done
exit "$failed"
