#!/usr/bin/env bash
# Set up an environment with VLMEvalKit, evaluate tango-mini with it, and print what came out.
set -euo pipefail

usage() {
    cat <<'END'
Usage: scripts/mini.sh [--full] [--clips N] [--methods "A B"] [--ratios "X Y"] [--output FOLDER] [--pretrained FOLDER]
       [--import PKG]

Asks tango-mini, the small trained model that comes with Tango, the questions of its own benchmark through VLMEvalKit's
runner: with all tokens, with all tokens of grey videos (a control: what can be guessed), and with every pruning method
at every ratio. Prints a table, and writes it with a plot of accuracy against tokens into the output folder. The
first run sets up .venv-toolkits. Ended early, the same command goes on where it was.

  --clips N            the first N of the 200 clips, each with about ten questions (10, to be done in ten minutes)
  --full               all 200 clips; takes hours on two cores
  --methods "A B"      names that tango methods lists (all pre-LLM methods)
  --ratios "X Y"       shares of the visual tokens to keep ("0.1 0.15 0.2")
  --output FOLDER      where results go (outputs/mini-N, N being the number of clips)
  --pretrained FOLDER  another checkpoint of the same kind (tango-mini)
  --import PKG         first import this package, for the methods that it registers; repeatable, as TANGO_IMPORT

PROCESSES in the environment is the number of processes: one for each GPU or, without any, for each core, up to 8.
END
}

clips=10 methods= ratios="0.1 0.15 0.2" output= pretrained=tango-mini
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --full) clips=200; shift; continue ;;
        --clips | --methods | --ratios | --output | --pretrained | --import) ;;
        *) echo "unknown argument $1; see $0 --help" >&2; exit 2 ;;
    esac
    [ $# -gt 1 ] || { echo "$1 needs a value; see $0 --help" >&2; exit 2; }
    if [ "$1" = --import ]; then export TANGO_IMPORT=${TANGO_IMPORT:+$TANGO_IMPORT,}$2; else printf -v "${1#--}" %s "$2"; fi
    shift 2
done
here=$PWD
absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
[ -z "$output" ] || output=$(absolute "$output")
[ "$pretrained" = tango-mini ] || pretrained=$(absolute "$pretrained")

TOOLKITS=1
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
output=${output:-$PWD/outputs/mini-$clips}
source scripts/imports.sh
if [ -z "$methods" ]; then # all pre-LLM methods that need no weights
    methods=$(tango methods "${imports[@]}" --json | python -c 'import json, sys
print(*(m["name"] for m in json.load(sys.stdin) if m["stage"] == "pre-LLM" and "weights" not in m["options"]))')
fi

gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
cores=$(nproc)
PROCESSES=${PROCESSES:-$((gpus > 0 ? gpus : cores < 8 ? cores : 8))}
launch=(python)
[ "$PROCESSES" -eq 1 ] || launch=(python -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES")
# Clips are drawn here and kept beside the toolkit's other data; nothing is downloaded.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 PYTHONWARNINGS=ignore
export LMUData=${LMUData:-$PWD/outputs/LMUData}
mkdir -p "$output" "$LMUData"

# What is started here ends with this script, whatever ends it (SIGKILL, too), where setpriv can see to that.
tied=()
! setpriv --pdeathsig KILL true 2>/dev/null || tied=(setpriv --pdeathsig KILL)

evaluate() { # the toolkit's own messages go into a file; what is left are the progress bars and errors
    local code=0
    (cd VLMEvalKit && exec "${tied[@]}" "${launch[@]}" run.py --config run_config/tango_mini.json --pretrained "$pretrained" \
        --work-dir "$output" --data-option "num_clips=$clips" --batch-size 10 "$@") >>"$output/run.log" || code=$?
    [ "$code" -eq 0 ] || { echo "failed; the toolkit's messages are in $output/run.log" >&2; exit "$code"; }
}

echo "Evaluating on $clips clips with $PROCESSES processes; results go to $output" >&2
evaluate --methods none
# shellcheck disable=SC2086 # lists of words
evaluate --methods $methods --ratios $ratios --datasets TangoMini

tango "${imports[@]}" runs --results "$output" --json >"$output/runs.json"
tango "${imports[@]}" runs --results "$output" | tee "$output/runs.md"
tango "${imports[@]}" figure accuracy --results "$output" --benchmarks TangoMini --output "$output/accuracy.png" >&2
