#!/usr/bin/env bash
# Pins every distribution, for Python 3.10 to 3.13 in one file each, from the short lists and the three pyproject.toml:
#
#   requirements.in           ->  requirements.txt           and, with the tools of the tests, scripts/locks/plain.txt
#   requirements-toolkits.in  ->  requirements-toolkits.txt  and scripts/locks/toolkits.txt
#
# Those in scripts/locks have hashes; scripts/environment.sh installs them. torch and torchvision are pinned without
# hashes in scripts/locks/torch.txt, since their builds for CPU and CUDA differ. What torch brings along for CUDA
# (nvidia-*, cuda-*, triton) is in no lock: its CUDA builds pin it exactly, its CPU builds must do without it.
#
# What is pinned stays as it is where it can. --upgrade takes the newest of everything, --upgrade-package NAME of one;
# all arguments go to `uv pip compile`. PYTHON is the interpreter that uv is installed with (python3).
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --require-hashes -r scripts/locks/uv.txt

options=("$@")
compile() { # an output, then sources and options
    "$folder/venv/bin/uv" pip compile --quiet --universal --python-version 3.10 --annotation-style line \
        --prerelease disallow --custom-compile-command "bash scripts/lock.sh" "${options[@]}" --output-file "$@" >/dev/null
}

plain=(requirements.in pyproject.toml)
toolkits=(requirements-toolkits.in pyproject.toml lmms-eval/pyproject.toml VLMEvalKit/pyproject.toml)
compile "$folder/all.txt" requirements.in
mapfile -t cuda < <(sed -nE 's/^((nvidia|cuda)-[a-z0-9-]+|triton)==.*/--no-emit-package=\1/p' "$folder/all.txt" | sort -u)
[ "${#cuda[@]}" -gt 0 ] || { echo "torch brings nothing along for CUDA? Look at its requirements." >&2; exit 1; }

grep -v "^-e" requirements.txt >"$folder/plain.txt" # an editable one cannot be a constraint
compile "$folder/plain.txt" "${plain[@]}" "${cuda[@]}"
{ cat "$folder/plain.txt"; echo "-e ."; } >requirements.txt
{
    echo "# By scripts/lock.sh, from requirements.txt. Without hashes: builds for CPU and CUDA differ."
    sed -nE 's/ +# via.*//; /^torch(vision)?==/p' "$folder/plain.txt"
} >scripts/locks/torch.txt
compile requirements-toolkits.txt "${toolkits[@]}" --constraint scripts/locks/torch.txt "${cuda[@]}"

hashed=(--generate-hashes --no-annotate --no-emit-package torch --no-emit-package torchvision)
mapfile -t not_triton < <(printf '%s\n' "${cuda[@]}" | grep -v triton) # Tango's own tests need triton
compile scripts/locks/plain.txt "${plain[@]}" --extra dev --constraint "$folder/plain.txt" "${hashed[@]}" "${not_triton[@]}"
compile scripts/locks/toolkits.txt "${toolkits[@]}" --constraint requirements-toolkits.txt "${hashed[@]}" "${cuda[@]}"
echo uv | compile scripts/locks/uv.txt --generate-hashes --no-annotate -
