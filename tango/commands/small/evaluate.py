"""`tango small evaluate`: asks the questions about scenes of clips that training did not use."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from tango.commands.common import add_method_arguments, add_model_arguments, frame_count, load_model, method_from
from tango.commands.mini.evaluate import run_of, table
from tango.lab.bench.common import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango small evaluate`."""
    add_model_arguments(parser)
    add_method_arguments(parser)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the clips, as scripts/train_small.sh cut them"
    )
    parser.add_argument("--num-clips", type=positive, default=100, help="how many scenes to ask about (100)")
    parser.add_argument("--num-frames", type=frame_count, help="frames of a scene (the model's usual number)")
    parser.add_argument(
        "--control", choices=("none", "blank", "other"), default="none",
        help="show a grey video, or another scene, in place of the one asked about (none)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="X.jsonl",
        help="write records for `tango runs`, a line per question, and X.run.json beside; continues a file that exists",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate, scene by scene, and print accuracies per kind of question."""
    from tqdm import tqdm

    from tango.lab.small.evaluation import evaluate, num_questions
    from tango.lab.small.questions import KINDS
    from tango.lab.small.sources import read_sources
    from tango.mini.evaluation import Results, summarise

    method, sources = method_from(args), read_sources(args.data, "test")
    asked_for = {"model": args.model, "control": args.control, "num_frames": args.num_frames, **method.to_dict()}
    results = None
    if args.output is not None:
        about = run_of(args, method)
        about["settings"] = {**about["settings"], "clips": sources.content}
        results = Results(args.output, about, partial(num_questions, sources=sources))
    records = [] if results is None else list(results.records)
    done = set() if results is None else results.clips
    remaining = [index for index in range(args.num_clips) if index not in done]
    model, processor = load_model(args)
    options = {"num_frames": args.num_frames, "control": args.control}
    with method.apply(model):
        asked = evaluate(model, processor, sources, remaining, **options)
        for of_scene in tqdm(asked, total=len(remaining), unit="scene", disable=None):
            records += of_scene
            if results is not None:
                results.add(of_scene)
    summary = summarise([record for record in records if record["clip"] < args.num_clips], KINDS)
    print(json.dumps({**asked_for, **summary}) if args.json else table(asked_for, summary))
    return 0
