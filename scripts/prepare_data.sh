#!/usr/bin/env bash
# Downloads the benchmarks and makes them ready for VLMEvalKit and lmms-eval; -h explains.
set -euo pipefail

usage() {
    cat <<'END'
Usage: bash scripts/prepare_data.sh [NAME ...]

Downloads data sets from the Hugging Face hub into its cache (HF_HOME, by default ~/.cache/huggingface), unpacks them,
and makes the tables of questions that VLMEvalKit reads, with VLMEvalKit's own code. Needs the network and
`pip install -e ./VLMEvalKit`; run it again to resume, what is there is not downloaded twice.

  NAME            repository on the hub
  Video-MME       lmms-lab/Video-MME; also linked to where lmms-eval looks for its videos (HF_HOME/videomme/data)
  MVBench         OpenGVLab/MVBench; the videos of NTU RGB+D must be requested from their authors and put into
                  video/nturgbd of the downloaded folder, as the data set's page says
  LongVideoBench  longvideobench/LongVideoBench
  MLVU_MCQ        MLVU/MVLU, the multiple-choice questions

Without a name: all four. They are large; leave room for the archives and the unpacked videos both. Some ask for consent
on their page; log in afterwards with `hf auth login`, or set HF_TOKEN. HF_ENDPOINT names a mirror. PYTHON is the
interpreter (python).
END
}

declare -A repositories=(
    [Video-MME]=lmms-lab/Video-MME
    [MVBench]=OpenGVLab/MVBench
    [LongVideoBench]=longvideobench/LongVideoBench
    [MLVU_MCQ]=MLVU/MVLU
)

names=("$@")
[ $# -gt 0 ] || names=(Video-MME MVBench LongVideoBench MLVU_MCQ)
for name in "${names[@]}"; do
    case $name in -h | --help) usage; exit 0 ;; esac
    [ -n "${repositories[$name]:-}" ] || {
        echo "prepare_data.sh: unknown data set '$name'; there are ${!repositories[*]}" >&2
        exit 2
    }
done

PYTHON=${PYTHON:-python}
bin=$(dirname "$(command -v "$PYTHON")")
for name in "${names[@]}"; do
    echo "== $name" >&2
    "$bin/hf" download "${repositories[$name]}" --repo-type dataset
    "$PYTHON" -m tango_vlmeval.data "$name"
done
