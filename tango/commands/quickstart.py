"""`tango quickstart`: asks a tiny model about a generated clip, with and without pruning."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import tango
from tango.commands.common import frame_count, quiet
from tango.profiling import StageTimer
from tango.report.results import Json
from tango.toy import write_checkpoint, write_clip

QUESTION = "What happens in this video?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango quickstart`."""
    parser.add_argument("--retention-ratio", type=float, default=0.1, help="fraction of visual tokens kept (0.1)")
    parser.add_argument("--num-frames", type=frame_count, default=32, help="frames sampled from the clip (32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Make a checkpoint and a clip, ask with all tokens and with pruned ones, and print the comparison."""
    from tango.runtime.answering import generate_text

    quiet()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "model", width=96, layers=4)
        write_clip(Path(folder) / "clip.mp4")
        model, processor = tango.load(Path(folder) / "model")
        timer = StageTimer()
        with timer.stage("read"):
            video = tango.read_video(Path(folder) / "clip.mp4", num_frames=args.num_frames)
        with timer.stage("preprocess"):
            inputs = tango.prepare(processor, video, QUESTION)
    results = {}
    for name, ratio in (("all tokens", 1.0), ("pruned", args.retention_ratio)):
        with tango.prune(model, "tango", retention_ratio=ratio) as pruning:
            generate_text(model, processor, inputs, max_new_tokens=8)  # warms up
            text = generate_text(model, processor, inputs, max_new_tokens=8)
            assert pruning.stats is not None
            results[name] = {"answer": text, **pruning.stats.to_dict()}
    results["shared_ms"] = timer.ms()
    print(json.dumps(results, ensure_ascii=False) if args.json else _report(results))
    return 0


def _report(results: Json) -> str:
    full, pruned = results["all tokens"], results["pruned"]
    lines = [
        "A tiny LLaVA-OneVision with random weights (its answers mean nothing) was asked about a generated clip.",
        f"question        {QUESTION}",
        f"{'':<16}{'all tokens':>12}{'pruned':>12}",
        f"{'visual tokens':<16}{full['tokens_after']:>12}{pruned['tokens_after']:>12}",
        f"{'prompt tokens':<16}{full['prompt_after'][0]:>12}{pruned['prompt_after'][0]:>12}",
    ]
    stages = dict.fromkeys([*full["stages_ms"], *pruned["stages_ms"]])
    for stage in stages:
        a, b = full["stages_ms"].get(stage, 0.0), pruned["stages_ms"].get(stage, 0.0)
        lines.append(f"{stage + ' ms':<16}{a:>12.1f}{b:>12.1f}")
    total = [sum(r["stages_ms"].values()) for r in (full, pruned)]
    lines.append(f"{'total ms':<16}{total[0]:>12.1f}{total[1]:>12.1f}   {total[0] / total[1]:.1f} x faster")
    before = ", ".join(f"{stage} {ms:.0f}" for stage, ms in results["shared_ms"].items())
    lines += [f"before both, ms  {before}", f"answers         {full['answer']!r} / {pruned['answer']!r}"]
    return "\n".join(lines)
