#!/usr/bin/env bash
# The rows of the paper's tables on tango-mini without a toolkit: each video is pruned once for all its questions.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash scripts/mini_tables.sh

Runs every row of some tables with `tango mini evaluate`, and writes the tables as Markdown. scripts/table1.sh and the
others do the same with VLMEvalKit, which takes several times as long. Ended early, the same command goes on from there.

  TABLES   as `tango experiments` knows them ("1 3 4 same_signal")
  RATIOS   only rows at these retention ratios, e.g. "0.1 0.05"
  EXACT    1: the same rows with exact budgets, into tables of their own
  CLIPS    the first N of 200 clips, each with about ten questions (100)
  RUN      0: only write the tables from what is in OUTPUT
  OUTPUT   outputs/mini_tables
  PYTHON   python
END
}

for flag in "$@"; do
    case $flag in
        -h | --help) usage; exit 0 ;;
        *) echo "unknown argument $flag; see $0 --help" >&2; exit 2 ;;
    esac
done
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python} CLIPS=${CLIPS:-100} OUTPUT=${OUTPUT:-outputs/mini_tables}
case $OUTPUT in /*) ;; *) OUTPUT=$here/$OUTPUT ;; esac
mkdir -p "$OUTPUT"
tango() { "$PYTHON" -m tango.cli "$@"; }

budget=() end=
[ "${EXACT:-}" != 1 ] || budget=(--exact-budget) end=-exact
for table in ${TABLES:-1 3 4 same_signal}; do
    rows=("$table" --model tango-mini)
    # shellcheck disable=SC2206 # a list of words
    [ -z "${RATIOS:-}" ] || rows+=(--ratios $RATIOS)
    runs=$(tango experiments "${rows[@]}" "${budget[@]}" --runs)
    while [ "${RUN:-1}" != 0 ] && read -r -u 3 method ratio flags; do
        name=$(sed -E 's/--option//g; s/[ =]+/_/g' <<<"$method-$ratio-$flags")
        [ "$ratio" = - ] || flags="--retention-ratio $ratio $flags"
        # shellcheck disable=SC2086 # several flags
        tango mini evaluate --method "$method" $flags --num-frames 16 --num-clips "$CLIPS" --clips "$OUTPUT/clips" \
            --output "$OUTPUT/$name.records.jsonl" >&2
    done 3<<<"$runs"
    case $table in [0-9]*) file=table$table$end.md ;; *) file=$table$end.md ;; esac
    tango table "$table" --results "$OUTPUT" --model tango-mini --benchmarks TangoMini "${budget[@]}" \
        --output "$OUTPUT/$file" >&2
    cat "$OUTPUT/$file"
done
