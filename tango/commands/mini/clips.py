"""`tango mini clips`: write the benchmark's clips and questions."""

from __future__ import annotations

import argparse
from pathlib import Path

from tango.lab.bench.common import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini clips`."""
    parser.add_argument("folder", type=Path, help="where the mp4 files and questions.jsonl go")
    parser.add_argument("--num-clips", type=positive, default=200, help="clips of the benchmark to write (200)")


def run(args: argparse.Namespace) -> int:
    """Write clips and questions; clips that exist already stay."""
    from tqdm import tqdm

    from tango.mini.benchmark import clip_file, write_questions

    args.folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(args.num_clips), desc="clips", unit="clip"):
        clip_file(args.folder, index)
    print(write_questions(args.folder, args.num_clips))
    return 0
