"""`tango calibrate`: suggests settings of Tango for a model, from a few videos; changes nothing by itself."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import yaml
from tqdm import tqdm

import tango
from tango.commands.common import add_model_arguments
from tango.commands.signals import (
    add_measure_arguments,
    check_output,
    check_videos,
    open_source,
    settings,
    step,
)
from tango.errors import TangoError
from tango.files import write_bytes
from tango.lab.signals.calibration import Observed, Suggestion, observe, suggest
from tango.methods import TangoPruner
from tango.report.results import Json

_OPTIONS = ("sinks", "segment_threshold", "static_threshold", "exact_budget")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango calibrate`."""
    add_model_arguments(parser, positional=True, saliency="p-attn")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files, of different scenes")
    parser.add_argument("--tower", action="store_true", help="MODEL is a vision tower alone, as for tango signals")
    add_measure_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.yaml", help="write the suggestion, for --config")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Encode a few videos, and suggest sinks, thresholds and the budget's rule with the reason of each."""
    pruner = TangoPruner(retention_ratio=args.retention_ratio)
    if args.retention_ratio == 1:
        raise TangoError("at ratio 1 all tokens are kept, and there is nothing to suggest")
    check_videos(args.videos)
    check_output(args.output)
    if args.tower:
        args.tower, args.model = args.model, ""
    source = open_source(args)
    source.check(pruner.needs, "tango calibrate")
    observed: list[Observed] = []
    with tqdm(total=len(args.videos), desc="calibrate", unit="video", file=sys.stderr) as progress:
        for path in args.videos:
            with step(progress, path, "encoding"):
                video = tango.read_video(path, num_frames=args.num_frames, backend=args.video_backend)
                observed.append(observe(source.encode(video, pruner.wants)))
    suggestion = suggest(observed, args.retention_ratio)
    record = {**settings(args), "videos": args.videos, **asdict(suggestion)}
    text = as_yaml(record)
    if args.output is not None:
        write_bytes(args.output, text.encode())
    print(json.dumps(record) if args.json else format_suggestion(suggestion, args.output))
    return 0


def as_yaml(record: Json) -> str:
    """The suggestion as a file for `--config`, with what it comes from and every reason as comments."""
    source = record.get("tower") or record["model"]
    date, count = record["environment"]["date"][:10], f"{len(record['videos'])} videos of {record['num_frames']} frames"
    lines = [
        f"Suggested by `tango calibrate` for {source} on {date}, from {count}.",
        "Not measured on any question: a suggestion to be tried beside the defaults.",
        *(f"{name}: {reason}" for name, reason in record["reasons"].items()),
    ]
    named = {"method": "tango", "saliency": record["saliency"], **record["options"]}
    comments = "".join(f"# {' '.join(line.split())}\n" for line in lines)
    return comments + yaml.safe_dump(named, sort_keys=False, default_flow_style=None)


def format_suggestion(suggestion: Suggestion, output: Path | None) -> str:
    """Every option with its value and the reason."""
    shown = {**dict.fromkeys(_OPTIONS, "as it is"), **suggestion.options}
    lines = [f"{name}: {_plain(shown[name])}\n    {suggestion.reasons[name]}" for name in _OPTIONS]
    end = "nothing was written or changed; --output FILE.yaml writes this for --config"
    return "\n".join([*lines, end if output is None else f"written to {output}; use it with --config {output}"])


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
