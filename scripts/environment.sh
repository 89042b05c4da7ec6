# Sourced by the other scripts: puts a virtual environment with Tango in it at the front of PATH.
#
#   PYTHON        interpreter to build it with (python3); all that it needs is venv and pip
#   VENV          where it lives (.venv)
#   TRANSFORMERS  another transformers release than the tested one
#   TOOLKITS      1: with lmms-eval and VLMEvalKit in it, and Tango's adapters to them (VENV: .venv-toolkits)
#
# It is built once, and anew when what is pinned changes: scripts/locks, which scripts/lock.sh makes. Everything is checked
# against hashes there, but torch and torchvision, whose builds differ, what they bring along for CUDA, and the build tools
# of a few old distributions. uv installs, from pip's index if another than the usual one is set; its own settings hold,
# too: UV_TORCH_BACKEND=cpu takes torch for the CPU from PyTorch's own index. To keep a torch that you have, install by
# hand beside it what has hashes, and Tango: pip install --no-deps -r scripts/locks/plain.txt && pip install --no-deps -e .
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
TOOLKITS=${TOOLKITS:-}
VENV=${VENV:-.venv${TOOLKITS:+-toolkits}${TRANSFORMERS:+-transformers-$TRANSFORMERS}}
[ -n "$TOOLKITS" ] && lock=toolkits || lock=plain
packages=(-e .)
[ -z "$TOOLKITS" ] || packages+=(-e ./lmms-eval -e ./VLMEvalKit)

"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "Tango needs Python 3.10 to 3.13; $("$PYTHON" --version) found. Set PYTHON to another interpreter." >&2
    exit 2
}

install() { PYTHONWARNINGS=ignore "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" "$@"; }
stamp=$(cat scripts/locks/*.txt scripts/environment.sh | sha256sum | cut -c1-16)
stamp=$lock-$stamp-${TRANSFORMERS:-tested}-${UV_TORCH_BACKEND:-default}
if [ "$(cat "$VENV/tango-stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "Setting up $VENV (a few minutes the first time) ..." >&2
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install --quiet --require-hashes -r scripts/locks/uv.txt
    source scripts/index.sh "$VENV/bin/python"
    # First what has hashes, torch's requirements among it: those that are there are not looked for again.
    install --no-deps --require-hashes -r "scripts/locks/$lock.txt"
    install -r scripts/locks/torch.txt
    [ -z "${TRANSFORMERS:-}" ] || install "transformers==$TRANSFORMERS"
    "$VENV/bin/python" -c "import torch${TOOLKITS:+, torchvision}"
    echo "$stamp" >"$VENV/tango-stamp"
fi
install --no-deps --no-build-isolation "${packages[@]}" # always: it may have been built for another clone
PATH="$(cd "$VENV/bin" && pwd):$PATH"
