"""`tango answer`: one question about one video, or several."""

from __future__ import annotations

import argparse
import json

import tango
from tango.commands.common import (
    add_method_arguments,
    add_model_arguments,
    add_video_arguments,
    load_model,
    method_from,
    num_frames_from,
    words,
)
from tango.containers import Video
from tango.lab.bench.common import positive
from tango.profiling import StageTimer
from tango.runtime.answering import generate_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango answer`."""
    add_video_arguments(parser)
    parser.add_argument("question", type=words, help="what to ask")
    parser.add_argument(
        "--ask",
        action="append",
        default=[],
        type=words,
        metavar="QUESTION",
        help="another question about the same video, which is encoded once; may be repeated",
    )
    add_model_arguments(parser)
    add_method_arguments(parser)
    parser.add_argument("--time-instruction", help="LLaVA-Video: frames, release or none (as the model was trained)")
    parser.add_argument("--vision-marks", help="Qwen3-VL: nested, as transformers' prompt, or flat (nested)")
    parser.add_argument("--max-new-tokens", type=positive, default=128, help="longest answer, in tokens (128)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per question: answer, counts, stage times"
    )


def run(args: argparse.Namespace) -> int:
    """Print every answer, and token counts and times below it."""
    method = method_from(args)  # before the video and the model: mistakes show before minutes of loading
    timer = StageTimer()
    frames = num_frames_from(args)
    with timer.stage("read"):
        video = tango.read_video(args.video, num_frames=frames, backend=args.video_backend)
    model, processor = load_model(args)
    shown: Video | tango.EncodedVideo = video
    telling = {"time_instruction": args.time_instruction, "vision_marks": args.vision_marks}
    with method.apply(model) as pruning:
        if args.ask:
            with timer.stage("encode"):
                shown, telling = tango.encode(model, processor, video, **telling), {}
        for question in (args.question, *args.ask):
            with timer.stage("preprocess"):
                inputs = tango.prepare(processor, shown, question, **telling)
            text = generate_text(model, processor, inputs, max_new_tokens=args.max_new_tokens)
            stats = pruning.stats if pruning is not None else None
            if args.json:
                record = {"video": args.video, "question": question, "answer": text, "model": args.model}
                record |= method.to_dict()
                record["frame_timestamps_s"] = video.timestamps_s.tolist()
                record["stats"] = None if stats is None else stats.to_dict()
                record["stages_ms"] = {**timer.ms(), **({} if stats is None else stats.timer.ms())}
                print(json.dumps(record, ensure_ascii=False))
            else:
                print(text)
                if stats is not None:
                    print(f"[{stats}]")
            timer = StageTimer()  # the video was read for the first question
    return 0
