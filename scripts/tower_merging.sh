#!/usr/bin/env bash
# What merging frames in the vision tower saves, and what it costs: tower time, and answers that stay, on tango-mini.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash scripts/tower_merging.sh

Asks tango-mini the questions of its benchmark with Tango alone, with frames merged in its tower before it (repaired, as
released), and with EarlyTom's own selection behind both. Prints accuracy, paired differences to Tango, the share of
answers that stay word for word, and the times of every stage, and writes them as tower_merging.md, runs.json and
profile.json. Ended early, the same command goes on where it was.

  CLIPS    the first N of 200 clips, each with about ten questions (100)
  RATIO    share of the visual tokens to keep (0.2)
  BLOCKS   blocks of the tower after which frames are merged (0:1; tango-mini has three)
  REPEATS  alternating runs behind the times (5)
  OUTPUT   outputs/tower_merging
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
PYTHON=${PYTHON:-python} CLIPS=${CLIPS:-100} RATIO=${RATIO:-0.2} BLOCKS=${BLOCKS:-0:1} REPEATS=${REPEATS:-5}
OUTPUT=${OUTPUT:-outputs/tower_merging}
case $OUTPUT in /*) ;; *) OUTPUT=$here/$OUTPUT ;; esac
mkdir -p "$OUTPUT"
tango() { "$PYTHON" -m tango.cli "$@"; }

profiled=
for run in tango tango:earlytom-frames tango:earlytom-frames-release earlytom:earlytom-frames \
    earlytom:earlytom-frames-release; do
    method=${run%%:*} tower=${run#"${run%%:*}"}
    options=()
    [ -z "$tower" ] || options=(--option "tower=${tower#:}" --option "tower_blocks=$BLOCKS")
    tango mini evaluate --method "$method" --retention-ratio "$RATIO" "${options[@]}" --num-clips "$CLIPS" \
        --clips "$OUTPUT/clips" --output "$OUTPUT/${run/:/-}-records.jsonl" >&2
    profiled+=${profiled:+,}$method${tower:+:tower=${tower#:}:tower_blocks=$BLOCKS}
done

tango runs --results "$OUTPUT" --against tango --json >"$OUTPUT/runs.json"
tango profile --model tango-mini --video "$OUTPUT/clips/clip_0000.mp4" --methods "$profiled" --ratios "$RATIO" \
    --repeats "$REPEATS" --threads 1 --max-new-tokens 4 --output "$OUTPUT/profile.json" >/dev/null
{
    tango runs --results "$OUTPUT" --against tango
    echo
    tango profile --record "$OUTPUT/profile.json" --markdown
} >"$OUTPUT/.tower_merging.md"
mv "$OUTPUT/.tower_merging.md" "$OUTPUT/tower_merging.md"
cat "$OUTPUT/tower_merging.md"
