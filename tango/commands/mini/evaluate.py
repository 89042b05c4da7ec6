"""`tango mini evaluate`: asks the benchmark's questions, with or without pruning."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tango import mini
from tango.commands.common import add_method_arguments, add_model_arguments, frame_count, load_model, method_from
from tango.evaluation import MethodConfig
from tango.evaluation.records import environment, identity
from tango.lab.bench.common import positive
from tango.report.results import Json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini evaluate`."""
    add_model_arguments(parser, default=mini.NAME)
    add_method_arguments(parser)
    parser.add_argument("--clips", type=Path, help="folder of the benchmark's clips, written if missing (temporary)")
    parser.add_argument("--num-clips", type=positive, default=200, help="how many of them to ask about (200)")
    parser.add_argument("--num-frames", type=frame_count, help="frames to sample (the model's usual number)")
    parser.add_argument(
        "--control", choices=("none", "blank", "other"), default="none",
        help="show a grey video, or another clip, in place of the one asked about (none)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="X.jsonl",
        help="write records for `tango runs`, a line per question, and X.run.json beside; continues a file that exists",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate, clip by clip, and print accuracies per kind of question."""
    from tqdm import tqdm

    from tango.mini import evaluation

    method = method_from(args)
    asked_for = {"model": args.model, "control": args.control, "num_frames": args.num_frames, **method.to_dict()}
    with ExitStack() as stack:
        folder = args.clips or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        results = None
        if args.output is not None:
            results = evaluation.Results(args.output, run_of(args, method))
            if args.clips:
                results.check_clips(args.clips, args.control)
        records = [] if results is None else list(results.records)
        done = set() if results is None else results.clips
        remaining = [index for index in range(args.num_clips) if index not in done]
        model, processor = load_model(args)
        stack.enter_context(method.apply(model))
        options = {"num_frames": args.num_frames, "control": args.control}
        asked = evaluation.evaluate(model, processor, folder, remaining, **options)
        for of_clip in tqdm(asked, total=len(remaining), unit="clip", disable=None):
            records += of_clip
            if results is not None:
                results.add(of_clip)
    summary = evaluation.summarise([record for record in records if record["clip"] < args.num_clips])
    print(json.dumps({**asked_for, **summary}) if args.json else table(asked_for, summary))
    return 0


def run_of(args: argparse.Namespace, method: MethodConfig) -> dict[str, Any]:
    """What holds for all records of the results' file."""
    behind = identity(args.model, method, local_files_only=args.offline)
    if args.siglip:
        behind["siglip"] = identity(args.siglip, local_files_only=args.offline)["content"]["checkpoint"]
    how = {name: getattr(args, name) for name in ("model", "control", "dtype", "attn_implementation")}
    found = environment()
    return {
        "model": Path(args.model).name,
        "method": method.to_record(),
        "num_frames": args.num_frames,
        "date": found["date"],
        "settings": {**how, **behind},
        "environment": found,
    }


def table(setting: Json, summary: Json) -> str:
    """The summary for people: a row for all questions, and one for each kind."""
    control = "" if setting["control"] == "none" else f", control: {setting['control']}"
    lines = [
        f"{setting['model']}, method {setting['method']}, {100 * summary['tokens_kept']:.1f} % of the visual tokens "
        f"kept, {summary['clips']} clips{control}",
        f"{'question':<10}{'asked':>7}{'right %':>10}{'95 %':>9}{'exact word %':>15}",
    ]
    for name, row in summary.items():
        if isinstance(row, dict):
            margin = "-" if math.isnan(row["margin"]) else f"+-{row['margin']:.1f}"  # one clip has no spread
            lines.append(f"{name:<10}{row['questions']:>7}{row['accuracy']:>10.1f}{margin:>9}{row['exact']:>15.1f}")
    return "\n".join(lines)
