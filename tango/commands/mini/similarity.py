"""`tango mini similarity`: measures how static the benchmark's clips are."""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tango import mini
from tango.commands.common import add_model_arguments, load_model
from tango.lab.bench.common import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini similarity`."""
    add_model_arguments(parser, default=mini.NAME)
    parser.add_argument("--clips", type=Path, help="folder of the benchmark's clips, written if missing (temporary)")
    parser.add_argument("--num-clips", type=positive, default=100, help="how many of them to look at (100)")


def run(args: argparse.Namespace) -> int:
    """Print as JSON: quantiles of the cosine between tokens of neighbouring frames, and the share of static tokens."""
    import numpy as np
    from tqdm import tqdm

    import tango
    from tango.lab import similarity
    from tango.mini.benchmark import clip_file

    model, processor = load_model(args)
    tables = []
    with ExitStack() as stack:
        folder = args.clips or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for index in tqdm(range(args.num_clips), unit="clip", disable=None):
            video = tango.read_video(clip_file(folder, index), num_frames=processor.default_num_frames)
            tables.append(similarity.similarity(model, video.frames))
    quantiles = (1, 5, 10, 25, 50, 75, 90, 95, 99)
    every = np.concatenate(tables)
    shares = [similarity.static_share(table) for table in tables]
    record = {
        "clips": args.num_clips,
        "cosine_percentiles": {q: round(float(np.percentile(every, q)), 4) for q in quantiles},
        "above_0.8": float(np.mean(every > 0.8)),
        "static_share_mean": float(np.mean(shares)),
        "static_share_min": min(shares),
        "static_share_max": max(shares),
    }
    print(json.dumps(record))
    return 0
