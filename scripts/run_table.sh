#!/usr/bin/env bash
# What table1.sh ... table4.sh and same_signal.sh share: every row of a table, one run of VLMEvalKit each, then the table.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash scripts/{table1,table2,table3,table4,same_signal}.sh [FLAG ...]

Runs every row of a table with VLMEvalKit and writes the table as Markdown, CSV and LaTeX: ours with a confidence interval
and the share of tokens that was kept, the paper's, and the paired difference to all tokens. Answers are kept as they
come: the same command again resumes. `tango experiments 1` lists the rows. Flags go to VLMEvalKit/run.py.

table1.sh ... table4.sh are the paper's tables, with rows of controls; in same_signal.sh all methods that read saliency
read the same one. TABLE=NAME bash scripts/run_table.sh runs any other that configs/experiments describes.

  CONFIG      model and data sets: a name (tango-mini by default; llava-onevision-7b for tables 1, 3 and 4, llava-video-7b
              and qwen2.5-vl-7b for table 2 are the paper's) or a JSON file below VLMEvalKit/. A model of its own runs all
              rows.
  MODEL       checkpoint, hub id or folder, in place of the one in CONFIG
  ROWS        only rows of these names, e.g. "full tango"
  RATIOS      only rows at these retention ratios, e.g. "0.1 0.2"
  LIMIT       only the first so many questions of each data set; the table marks such runs
  OUTPUT      outputs/<CONFIG in lower case>; tables that share it share their rows
  DATASETS    VLMEvalKit's data sets to run; those of CONFIG by default (table 4: Video-MME and MLVU_MCQ)
  BENCHMARKS  the table's columns, if not the paper's; TangoMini for tango-mini
  AGAINST     a row's name: compare every row with it, question by question (all tokens)
  EXACT       1: the same rows, each pre-LLM method keeping exactly its ratio of the tokens; the files are <table>-exact
  SALIENCY    the same rows, all methods that read saliency reading this one; the files are <table>-<SALIENCY>
  RUN         0: only write the table from what is in OUTPUT
  PYTHON      python

GPUS, PROCESSES, EXTRA, TANGO_IMPORT and those for several nodes are as in VLMEvalKit/run_eval.sh.

The exit code is 0 if all went well, 1 if a run failed (the others are still made, and the table shows what there is), 2
for a mistake in the settings.
END
}

for flag in "$@"; do
    case $flag in -h | --help) usage; exit 0 ;; esac
done
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${TABLE:?is not set; start one of table1.sh, table2.sh, table3.sh, table4.sh and same_signal.sh}"
PYTHON=${PYTHON:-python}

known() { (cd VLMEvalKit/run_config && printf '  %s\n' *.json) >&2; }
file_of() { case $1 in *.json) echo "$1" ;; *) echo "run_config/$(tr 'A-Z.-' 'a-z__' <<<"$1").json" ;; esac; }

if [ -n "${CHECKPOINT:-}" ]; then
    echo "the checkpoint is called MODEL, as in all scripts: say MODEL=$CHECKPOINT in place of CHECKPOINT" >&2
    exit 2
fi
if [ -n "${MODEL:-}" ] && [ -z "${CONFIG:-}" ]; then
    if [ -f "VLMEvalKit/$(file_of "$MODEL")" ]; then
        echo "MODEL=$MODEL names no checkpoint, which MODEL is; say CONFIG=$MODEL" >&2
    else
        echo "MODEL=$MODEL needs CONFIG, too, which names its model and data sets; there are:" >&2
        known
    fi
    exit 2
fi
CONFIG=${CONFIG:-tango-mini}
config=$(file_of "$CONFIG")
if [ ! -f "VLMEvalKit/$config" ]; then
    echo "no VLMEvalKit/$config for CONFIG=$CONFIG; there are:" >&2
    known
    exit 2
fi
name=$CONFIG
case $name in
    *.json) name=$("$PYTHON" -c 'import json, sys; print(*json.load(open(sys.argv[1]))["model"])' "VLMEvalKit/$config") ;;
esac
OUTPUT=${OUTPUT:-outputs/$(tr A-Z a-z <<<"$name")} # one folder, however CONFIG spells the name
case $OUTPUT in /*) ;; *) OUTPUT=$here/$OUTPUT ;; esac
if [ "$name" = tango-mini ]; then
    DATASETS=${DATASETS:-TangoMini} BENCHMARKS=${BENCHMARKS:-TangoMini}
elif [ "$TABLE" = 4 ]; then
    DATASETS=${DATASETS:-Video-MME MLVU_MCQ}
fi

source scripts/imports.sh
tango() { "$PYTHON" -m tango.cli "${imports[@]}" "$@"; }

changes=() file=$TABLE
case $TABLE in [0-9]*) file=table$TABLE ;; esac
case ${EXACT:-0} in
    0) ;;
    1) changes+=(--exact-budget) file+=-exact ;;
    *) echo "EXACT must be 0 or 1, got $EXACT" >&2; exit 2 ;;
esac
[ -z "${SALIENCY:-}" ] || { changes+=(--saliency "$SALIENCY"); file+=-$SALIENCY; }
rows=(experiments "$TABLE" --model "$name" "${changes[@]}" --runs)
# shellcheck disable=SC2206 # lists of words
[ -z "${ROWS:-}" ] || rows+=(--names $ROWS)
# shellcheck disable=SC2206
[ -z "${RATIOS:-}" ] || rows+=(--ratios $RATIOS)
runs=$(tango "${rows[@]}") || exit 2

# What is started here ends with this script, whatever ends it (SIGKILL, too), where setpriv can see to that.
tied=()
! setpriv --pdeathsig KILL true 2>/dev/null || tied=(setpriv --pdeathsig KILL)

failed=()
while [ "${RUN:-1}" != 0 ] && read -r -u 3 method ratio flags; do
    code=0
    # shellcheck disable=SC2086 # several flags
    METHODS=$method RATIOS=$ratio MODEL=${MODEL:-} CONFIG=$config DATASETS=${DATASETS:-} OUTPUT=$OUTPUT \
        PRUNED_LAYER='' "${tied[@]}" bash VLMEvalKit/run_eval.sh $flags "$@" || code=$?
    [ "$code" -eq 0 ] || failed+=("$method $ratio $flags (exit code $code)")
done 3<<<"$runs"
[ "${NODE_RANK:-0}" -eq 0 ] || exit 0

render=(table "$TABLE" --results "$OUTPUT" --model "$name" "${changes[@]}")
# shellcheck disable=SC2206
[ -z "${BENCHMARKS:-}" ] || render+=(--benchmarks $BENCHMARKS)
[ -z "${AGAINST:-}" ] || render+=(--against "$AGAINST")
tango "${render[@]}" --format csv --output "$OUTPUT/$file.csv"
tango "${render[@]}" --format latex --output "$OUTPUT/$file.tex"
tango "${render[@]}" --output "$OUTPUT/$file.md"
cat "$OUTPUT/$file.md"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
