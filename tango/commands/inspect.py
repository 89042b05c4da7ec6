"""`tango inspect`: shows which tokens of a video would be kept."""

from __future__ import annotations

import argparse
import json

import torch

import tango
from tango.commands.common import (
    add_method_arguments,
    add_model_arguments,
    add_video_arguments,
    load_model,
    method_from,
    num_frames_from,
)
from tango.containers import PrunedTokens, Signal, Video, VisualTokens
from tango.errors import TangoError
from tango.evaluation import MethodConfig
from tango.methods import Pruner, available_pruners
from tango.profiling import StageTimer
from tango.report.results import Json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango inspect`."""
    add_video_arguments(parser)
    add_model_arguments(parser)
    add_method_arguments(parser)
    parser.add_argument(
        "--map", action="store_true", help="draw every frame: # kept, @ kept with others merged in, . merged away"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every kept index")


def run(args: argparse.Namespace) -> int:
    """Run the vision tower and the pruner, not the language model."""
    method = method_from(args)
    if method.method not in available_pruners():
        raise TangoError(
            f"inspect needs a pre-LLM method, got {method.method}: {', '.join(available_pruners())}; "
            "tango compare shows what intra-LLM methods keep, given a --question"
        )
    if Signal.TEXT in method.plan.pruner.wants:
        raise TangoError(
            f"what {method.method} keeps depends on the question, and inspect asks none; tango compare shows it, given "
            "a --question"
        )
    if method.plan.tower is not None:
        raise TangoError(f"inspect shows what is kept of all frames; leave out tower {method.plan.tower.name}")
    video, tokens, pruner = encode(args, method)
    with torch.inference_mode():
        pruned = pruner(tokens)
    segments = _segments(pruner, tokens, pruned)
    if args.json:
        print(json.dumps(_record(args, pruner, video, tokens, pruned, segments)))
        return 0
    T, N, _ = tokens.features.shape
    K = len(pruned.indices)
    print(f"{args.video}: {T} frames of {video.num_source_frames} ({video.duration_s:.1f} s), grid {tokens.grid}")
    print(f"{pruner.name}: {T * N} -> {K} visual tokens ({100 * K / (T * N):.1f} %)")
    print(f"{'segment':>7} {'frames':>9} {'seconds':>17} {'kept':>6} {'share':>7}")
    for i, segment in enumerate(segments):
        first, last = segment["frames"]
        seconds = "{:8.2f}-{:8.2f}".format(*segment["seconds"])
        print(f"{i:>7} {f'{first}-{last}':>9} {seconds:>17} {segment['kept']:>6} {100 * segment['share']:>6.1f}%")
    if args.map:
        print(token_map(tokens, pruned))
    return 0


def encode(args: argparse.Namespace, method: MethodConfig) -> tuple[Video, VisualTokens, Pruner]:
    """Read the video, compute its visual tokens with the signals that the method wants, and build the method."""
    frames = num_frames_from(args)
    video = tango.read_video(args.video, num_frames=frames, backend=args.video_backend)
    model, processor = load_model(args)
    inputs = tango.prepare(processor, video, "").to(model.device)
    with method.apply(model) as pruning, torch.inference_mode():
        assert pruning is not None
        (tokens,) = pruning.adapter.encode_videos(inputs, pruning.pruner.wants, StageTimer()).videos
    return video, tokens, pruning.pruner


def _segments(pruner: Pruner, tokens: VisualTokens, pruned: PrunedTokens) -> list[Json]:
    """First and last frame, seconds and tokens kept of each segment, or of each frame if the method has no segments."""
    T, N, _ = tokens.features.shape
    find = getattr(pruner, "segments", None)
    lengths = find(tokens) if find is not None else [1] * T
    per_frame = torch.bincount(pruned.indices.cpu() // N, minlength=T).tolist()
    seconds = tokens.timestamps_s.tolist()
    rows: list[Json] = []
    start = 0
    for length in lengths:
        last = start + length - 1
        kept = sum(per_frame[start : last + 1])
        times = [round(seconds[start], 3), round(seconds[last], 3)]
        rows.append({"frames": [start, last], "seconds": times, "kept": kept, "share": round(kept / (length * N), 4)})
        start += length
    return rows


def _record(
    args: argparse.Namespace,
    pruner: Pruner,
    video: Video,
    tokens: VisualTokens,
    pruned: PrunedTokens,
    segments: list[Json],
) -> Json:
    T, N, _ = tokens.features.shape
    return {
        "video": args.video,
        "model": args.model,
        "method": pruner.name,
        "options": pruner.config(),
        "frames": T,
        "grid": list(tokens.grid),
        "frame_indices": list(video.frame_indices),
        "timestamps_s": tokens.timestamps_s.tolist(),
        "tokens_before": T * N,
        "tokens_after": len(pruned.indices),
        "segments": segments,
        "indices": pruned.indices.tolist(),
        "assignment": None if pruned.assignment is None else pruned.assignment.tolist(),
    }


def token_map(tokens: VisualTokens, pruned: PrunedTokens) -> str:
    """Draw all frames as text, several side by side."""
    T, N, _ = tokens.features.shape
    H, W = tokens.grid
    symbols = [" "] * (T * N)
    absorbed = [1] * len(pruned.indices)
    if pruned.assignment is not None:
        assignment = pruned.assignment.cpu()
        symbols = ["." if row >= 0 else " " for row in assignment.tolist()]
        absorbed = torch.bincount(assignment[assignment >= 0], minlength=len(absorbed)).tolist()
    for index, count in zip(pruned.indices.tolist(), absorbed, strict=True):
        symbols[index] = "@" if count > 1 else "#"
    lines = []
    per_line = max(1, 100 // (W + 3))  # frames side by side
    for start in range(0, T, per_line):
        frames = range(start, min(start + per_line, T))
        lines.append("   ".join(f"{t}:".ljust(W) for t in frames))
        for y in range(H):
            lines.append("   ".join("".join(symbols[t * N + y * W : t * N + (y + 1) * W]) for t in frames))
        lines.append("")
    return "\n".join(lines)
