"""`tango mini`: train the small model, write its benchmark's clips, and evaluate on them."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tango import mini
from tango.commands.common import add_method_arguments, add_model_arguments, load_model, method_from


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini train`."""
    parser.add_argument("output", type=Path, help="folder of the checkpoint; it must not exist yet")
    parser.add_argument("--work", type=Path, help="folder of the training's state (OUTPUT.work)")
    parser.add_argument("--seed", type=int, default=0, help="decides weights and training clips (0)")
    parser.add_argument("--vision-steps", type=int, help="steps of the first stage (those of the published weights)")
    parser.add_argument("--language-steps", type=int, help="steps of the second stage (likewise)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's choice)")
    parser.add_argument("--workers", type=int, default=1, help="processes that render clips (1)")


def train(args: argparse.Namespace) -> int:
    """Train; started again after an interruption, it goes on where it was."""
    import torch

    from tango.commands.common import quiet
    from tango.mini.recipe import Recipe
    from tango.mini.train import train as run_training

    quiet()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    given = {"vision_steps": args.vision_steps, "language_steps": args.language_steps}
    recipe = Recipe(seed=args.seed, **{name: value for name, value in given.items() if value is not None})
    work = args.work or args.output.with_name(f"{args.output.name}.work")

    def log(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, flush=True)

    run_training(args.output, work, recipe, device=args.device, workers=args.workers, log=log)
    return 0


def add_clips_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini clips`."""
    parser.add_argument("folder", type=Path, help="where the mp4 files and questions.jsonl go")
    parser.add_argument("--num-clips", type=_positive, default=200, help="clips of the benchmark to write (200)")


def clips(args: argparse.Namespace) -> int:
    """Write clips and questions; clips that are there already stay."""
    from tqdm import tqdm

    from tango.mini.benchmark import clip_file, write_questions

    args.folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(args.num_clips), unit="clip", disable=None):
        clip_file(args.folder, index)
    print(write_questions(args.folder, args.num_clips))
    return 0


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini evaluate`."""
    add_model_arguments(parser, default=mini.NAME)
    add_method_arguments(parser)
    parser.add_argument("--clips", type=Path, help="folder of the benchmark's clips, written if missing (temporary)")
    parser.add_argument("--num-clips", type=_positive, default=200, help="how many of them to ask about (200)")
    parser.add_argument("--num-frames", type=_positive, help="frames to sample (the model's usual number)")
    parser.add_argument(
        "--control", choices=("none", "blank", "other"), default="none",
        help="show a grey video, or another clip, in place of the one asked about (none)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON lines, one per clip; a file that is there is continued")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate, clip by clip, and print accuracies per kind of question."""
    from tqdm import tqdm

    from tango.mini import evaluation

    method = method_from(args)
    setting = {"model": args.model, "control": args.control, "num_frames": args.num_frames, **method.to_dict()}
    with ExitStack() as stack:
        folder = args.clips or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        results = None if args.output is None else evaluation.Results(args.output, setting)
        records = [] if results is None else list(results.records)
        done = {record["clip"] for record in records}
        remaining = [index for index in range(args.num_clips) if index not in done]
        model, processor = load_model(args)
        stack.enter_context(method.apply(model))
        options = {"num_frames": args.num_frames, "control": args.control}
        asked = evaluation.evaluate(model, processor, folder, remaining, **options)
        for record in tqdm(asked, total=len(remaining), unit="clip", disable=None):
            records.append(record)
            if results is not None:
                results.add(record)
    summary = evaluation.summarise([record for record in records if record["clip"] < args.num_clips])
    print(json.dumps({**setting, **summary}) if args.json else _table(setting, summary))
    return 0


def _table(setting: dict[str, Any], summary: dict[str, Any]) -> str:
    from tango.mini.questions import KINDS

    control = "" if setting["control"] == "none" else f", control: {setting['control']}"
    lines = [
        f"{setting['model']}, method {setting['method']}, {100 * summary['tokens_kept']:.1f} % of the visual tokens "
        f"kept, {summary['clips']} clips{control}",
        f"{'question':<10}{'asked':>7}{'right %':>10}{'95 %':>9}{'exact word %':>15}",
    ]
    for name in ("all", *KINDS):
        if name in summary:
            row = summary[name]
            margin = f"+-{row['margin']:.1f}"
            lines.append(f"{name:<10}{row['questions']:>7}{row['accuracy']:>10.1f}{margin:>9}{row['exact']:>15.1f}")
    return "\n".join(lines)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_similarity_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango mini similarity`."""
    add_model_arguments(parser, default=mini.NAME)
    parser.add_argument("--clips", type=Path, help="folder of the benchmark's clips, written if missing (temporary)")
    parser.add_argument("--num-clips", type=_positive, default=100, help="how many of them to look at (100)")


def similarity(args: argparse.Namespace) -> int:
    """Print, as JSON, quantiles of the cosine between neighbouring frames' tokens, and the share that is static."""
    import numpy as np
    from tqdm import tqdm

    import tango
    from tango.mini import evaluation
    from tango.mini.benchmark import clip_file

    model, processor = load_model(args)
    tables = []
    with ExitStack() as stack:
        folder = args.clips or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for index in tqdm(range(args.num_clips), unit="clip", disable=None):
            video = tango.read_video(clip_file(folder, index), num_frames=processor.default_num_frames)
            tables.append(evaluation.similarity(model, video.frames))
    quantiles = (1, 5, 10, 25, 50, 75, 90, 95, 99)
    cosines = np.percentile(np.concatenate(tables), quantiles).tolist()
    shares = [evaluation.static_share(table) for table in tables]
    record = {
        "clips": args.num_clips,
        "cosine_percentiles": {q: round(c, 4) for q, c in zip(quantiles, cosines, strict=True)},
        "above_0.8": float(np.mean(np.concatenate(tables) > 0.8)),
        "static_share_mean": float(np.mean(shares)),
        "static_share_min": min(shares),
        "static_share_max": max(shares),
    }
    print(json.dumps(record))
    return 0


Command = tuple[str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
COMMANDS: tuple[Command, ...] = (
    ("train", "train the small model from nothing", add_train_arguments, train),
    ("clips", "write the benchmark's clips and questions", add_clips_arguments, clips),
    ("evaluate", "ask the benchmark's questions, with or without pruning", add_evaluate_arguments, evaluate),
    ("similarity", "measure how static the benchmark's clips are", add_similarity_arguments, similarity),
)
