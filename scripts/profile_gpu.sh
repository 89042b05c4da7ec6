#!/usr/bin/env bash
# Measures Tango on one CUDA GPU in at most ten minutes: the pruner alone, LLaVA-OneVision-7B end to end, and the same
# with a compiled tower. Writes JSON to results/ and prints Markdown.
#
# Random weights of the published shape, made on the GPU: nothing is downloaded, and times, memory and token counts are
# those of the real model. 32 made-up frames, bfloat16. End to end: all tokens; tango at 0.1, 0.15 and 0.2; and the paper's
# page as it stands (tango:engine=plain), each with SDPA in the tower and, as the paper's release ran it, with eager
# attention. The last column, "TTFT over none, eager tower", is what Tango and a faster tower gain together.
# Needs torch with CUDA, transformers, accelerate (and what these need), and about 30 GB on the GPU.
#
# Files are whole after every round, so what was measured before a crash or the end of the time is in them. The exit
# status is 0 if every step ended by itself without a failed row, else 1.
#
#   bash scripts/profile_gpu.sh                          options given here go to the end-to-end step and win
#   tango profile --record results/profile_<gpu>.json --markdown --plot profile.png      shows it again, anywhere
#
#   PYTHON    interpreter (python)                       SHAPE     of the model (llava-onevision-7b)
#   RESULTS   folder for the files (results)             FRAMES    of the video (32)
#   DEVICE    cuda (cpu: to try the script out)          LIMIT_S   seconds for everything (540)
#   STEPS     which, with blanks between (pruner profile compiled)
#
#   DEVICE=cpu SHAPE=llava-onevision-tiny FRAMES=2 RESULTS=outputs/tried bash scripts/profile_gpu.sh --repeats 1
#
# Not yet run on a GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python} results=${RESULTS:-results} device=${DEVICE:-cuda} shape=${SHAPE:-llava-onevision-7b}
frames=${FRAMES:-32} limit_s=${LIMIT_S:-540} steps=${STEPS:-pruner profile compiled}
dtype=bfloat16 name=cpu
if [[ $device == cpu ]]; then
    dtype=float32
else
    find_name='import re, torch; print(re.sub("[^a-z0-9]+", "_", torch.cuda.get_device_name(0).lower()))'
    name=$("$python" -c "$find_name" 2>/dev/null) || {
        echo "$python needs torch and a CUDA GPU; set PYTHON to another interpreter, or run this on a machine with both." >&2
        exit 2
    }
fi
source scripts/imports.sh
SECONDS=0 failed=0

# Run `tango ...` for at most so many seconds of those that are left.
step() {
    local most=$1 left=$((limit_s - SECONDS)) status=0
    shift
    ((left < most)) && most=$left
    if ((most <= 0)); then
        echo "no time left for: tango $*" >&2
        failed=1
        return
    fi
    timeout --signal=INT --kill-after=10 "$most" "$python" -m tango.cli "${imports[@]}" "$@" || status=$?
    if ((status != 0)); then
        echo "tango $1 ended with status $status after $SECONDS s in all (124: out of time; its file has what was done)" >&2
        failed=1
    fi
    return "$status"
}

# End to end into a file; what an interrupted run wrote is shown all the same.
profile() {
    local most=$1 file=$2
    shift 2
    rm -f "$file"
    step "$most" profile --random-weights "$shape" --device "$device" --dtype "$dtype" --num-frames "$frames" \
        --max-new-tokens 32 --markdown --output "$file" "$@"
    local status=$?
    ((status >= 124)) && [[ -e $file ]] && "$python" -m tango.cli profile --record "$file" --markdown
    return "$status"
}

for one in $steps; do
    case $one in
        pruner)
            for data in video iid; do
                step $((limit_s / 8)) bench pruner --device "$device" --dtype "$dtype" --data "$data" --repeats 10 \
                    --frames "$frames" $((4 * frames)) --reference-up-to $((4 * frames)) \
                    --output "$results/bench_pruner_${name}_$data.json"
            done
            ;;
        profile)
            profile $((limit_s / 2)) "$results/profile_$name.json" --methods none,tango,tango:engine=plain --ratios 0.1,0.15,0.2 \
                --tower-attn-implementation sdpa,eager --repeats 7 "$@"
            ;;
        compiled)
            profile $((limit_s / 3)) "$results/profile_${name}_compiled.json" --methods none,tango --ratios 0.1 \
                --compile reduce-overhead --repeats 7 "$@"
            ;;
        *)
            echo "unknown step '$one'; known: pruner profile compiled" >&2
            exit 2
            ;;
    esac
done
exit "$failed"
