# Sourced by the other scripts: puts a virtual environment with Tango in it at the front of PATH.
#
#   PYTHON        interpreter to build it with (python3)
#   VENV          where it lives (.venv)
#   TRANSFORMERS  another transformers release than the tested one
#   TOOLKITS      1: with lmms-eval and VLMEvalKit in it, and Tango's adapters to them (VENV: .venv-toolkits)
#
# It is built once, and anew when the requirements change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
TOOLKITS=${TOOLKITS:-}
VENV=${VENV:-.venv${TOOLKITS:+-toolkits}${TRANSFORMERS:+-transformers-$TRANSFORMERS}}
requirements=(requirements.txt pyproject.toml)
packages=(-e ".[dev]")
if [ -n "$TOOLKITS" ]; then
    requirements=(requirements-toolkits.txt pyproject.toml lmms-eval/pyproject.toml VLMEvalKit/pyproject.toml)
    packages=(-e . -e ./lmms-eval -e ./VLMEvalKit)
fi

"$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "Tango needs Python 3.10 to 3.13; $("$PYTHON" --version) found. Set PYTHON to another interpreter." >&2
    exit 2
}

# torchvision for a torch without CUDA: see the file that this copies.
allow_torchvision_on_cpu() {
    "$VENV/bin/python" -c "import torchvision" 2>/dev/null && return
    local site
    site=$("$VENV/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    cp scripts/torchvision_on_cpu.py "$site"
    echo "import torchvision_on_cpu" >"$site/torchvision_on_cpu.pth"
    "$VENV/bin/python" -c "import torchvision"
}

stamp=$(cat "${requirements[@]}" scripts/environment.sh | sha256sum | cut -c1-16)-${TRANSFORMERS:-tested}
install() { PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip install --quiet "$@"; }
if [ "$(cat "$VENV/tango-stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "Setting up $VENV (a few minutes the first time) ..." >&2
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    install --upgrade pip "setuptools>=77"
    install -r "${requirements[0]}"
    [ -z "${TRANSFORMERS:-}" ] || install "transformers==$TRANSFORMERS"
    install --no-build-isolation "${packages[@]}"
    [ -z "$TOOLKITS" ] || allow_torchvision_on_cpu
    echo "$stamp" >"$VENV/tango-stamp"
else # the environment may have been built for another clone
    install --no-build-isolation --no-deps "${packages[@]}"
fi
PATH="$(cd "$VENV/bin" && pwd):$PATH"
