"""`tango signals`: what the paper claims about attention and similarity, measured on any videos."""

from __future__ import annotations

import argparse
import functools
import json
import operator
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

import tango
from tango.commands.common import add_model_arguments, frame_count, load_model, quiet
from tango.containers import Signal
from tango.errors import OptionError, TangoError, UnknownNameError
from tango.evaluation.records import environment
from tango.files import make_folder, write_json
from tango.lab.signals.measures import ROPES, attention_measures, cluster_measures, method_measures
from tango.lab.signals.sinks import find_sinks
from tango.lab.signals.sources import ModelSource, Source
from tango.lab.signals.tower import BareTower
from tango.methods import Pruner, TangoPruner, available_pruners, build_pruner, pruner_class
from tango.report.results import Json
from tango.report.text import align


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango signals`."""
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    add_model_arguments(parser, default="", saliency="p-attn")
    parser.add_argument(
        "--tower", metavar="FOLDER", help="in place of --model: a vision tower alone, such as DINOv2's, in safetensors"
    )
    add_measure_arguments(parser)
    parser.add_argument(
        "--methods", default="all", metavar="NAMES", help="pre-LLM methods, with commas between; or all, or none (all)"
    )
    parser.add_argument("--exact-budget", action="store_true", help="let every method keep exactly that fraction")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write everything as JSON")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how videos are read, and at which ratio they are looked at."""
    parser.add_argument("--num-frames", type=frame_count, help="frames to sample (the model's usual number; tower: 32)")
    parser.add_argument("--video-backend", default="auto", help="auto, pyav, torchcodec or decord (auto)")
    parser.add_argument("--retention-ratio", type=float, default=0.1, help="fraction of visual tokens kept (0.1)")


def run(args: argparse.Namespace) -> int:
    """Encode every video once and measure it; neither the language model nor any training runs."""
    pruners, excluded = choose(args), {}
    own = TangoPruner(retention_ratio=args.retention_ratio)
    check_videos(args.videos)
    check_output(args.output)
    source = open_source(args)
    source.check(own.needs, "tango signals")
    pruners = servable(source, pruners, excluded)
    wants = functools.reduce(operator.or_, (pruner.wants for pruner in pruners), own.wants)
    videos: list[Json] = []
    saliencies: list[Tensor] = []
    known: tuple[int, ...] = ()
    steps = len(args.videos) * (3 + len(pruners))
    with tqdm(total=steps, desc="signals", unit="step", file=sys.stderr) as progress:
        for path in args.videos:
            with step(progress, path, "encoding"):
                video = tango.read_video(path, num_frames=args.num_frames, backend=args.video_backend)
                tokens = source.encode(video, wants)
            assert tokens.saliency is not None
            with step(progress, path, "attention"):
                attention = attention_measures(tokens, own)
            with step(progress, path, "clusters"):
                clusters = cluster_measures(tokens, own)
            rows = method_measures(tokens, pruners, excluded, functools.partial(next_step, progress, path))
            saliencies.append(tokens.saliency.cpu())
            known = tokens.sink_positions
            T, (H, W) = len(tokens.features), tokens.grid
            shape = {"video": path, "duration_s": round(video.duration_s, 3), "frames": T, "grid": [H, W]}
            videos.append({**shape, "attention": attention, "clusters": clusters, "methods": rows})
    record = {**settings(args), "exact_budget": args.exact_budget, "videos": videos}
    record |= {"sinks": sink_record(saliencies, videos), "known_sinks": list(known), "not_measured": excluded}
    if args.output is not None:
        write_json(args.output, record)
    print(json.dumps(record) if args.json else format_record(record))
    return 0


def settings(args: argparse.Namespace) -> Json:
    """What was measured, on which machine and with which releases."""
    source = {"tower": args.tower} if args.tower else {"model": args.model}
    names = ("saliency", "num_frames", "retention_ratio")
    return {**source, **{name: getattr(args, name) for name in names}, "environment": environment()}


def choose(args: argparse.Namespace) -> list[Pruner]:
    """The methods to measure, built before minutes of loading; with "all", not those that need learned weights.

    Raises:
        UnknownNameError: no such pre-LLM method; BudgetError: the ratio is out of range.
    """
    known = available_pruners()
    names = [] if args.methods == "none" else list(dict.fromkeys(name.strip() for name in args.methods.split(",")))
    if args.methods == "all":
        names = [name for name in known if not hasattr(pruner_class(name), "weights")]
    for name in names:
        if name not in known:
            raise UnknownNameError("pre-LLM method", name, ["all", "none", *known])
    return [build_pruner(n, retention_ratio=args.retention_ratio, exact_budget=args.exact_budget) for n in names]


def check_videos(paths: Sequence[str]) -> None:
    """Refuse files that are not there, and a video that is named twice, before minutes of work.

    Raises:
        TangoError: there is no such file, or it is given again.
    """
    for i, path in enumerate(paths):
        if not Path(path).exists():
            raise TangoError(f"cannot read {path!r}: no such file")
        if path in paths[:i]:
            raise TangoError(f"{path!r} is given twice; every video counts alike, so name each once")


def check_output(output: Path | None) -> None:
    """Refuse a folder as output, and make the folder that it lies in, before minutes of work."""
    if output is not None and output.is_dir():
        raise TangoError(f"--output needs a file, {output} is a folder")
    if output is not None:
        make_folder(output.parent)


def open_source(args: argparse.Namespace) -> Source:
    """Load the model or the tower that the arguments name, and complete `num_frames` and `saliency`.

    Raises:
        OptionError: both are named, or none; or a tower comes with options of a model.
    """
    if bool(args.model) == bool(args.tower):
        raise OptionError("give --model, or --tower for a vision tower alone")
    if args.tower and (args.dtype not in ("auto", "float32") or args.attn_implementation or args.siglip):
        raise OptionError("a tower runs in float32 as transformers builds it; --dtype and others are for models")
    quiet()
    source: Source
    if args.tower:
        source = BareTower(args.tower, saliency=args.saliency, device=args.device)
    else:
        source = ModelSource(*load_model(args), saliency=args.saliency)
    args.num_frames = args.num_frames or source.default_num_frames
    return source


def servable(source: Source, pruners: Sequence[Pruner], excluded: dict[str, str]) -> list[Pruner]:
    """Bind the methods whose signals the source supplies to its model; the others join `excluded`."""
    served = []
    for pruner in pruners:
        if Signal.TEXT in pruner.wants:
            excluded[pruner.name] = f"what {pruner.name} keeps depends on the question, and none is asked here"
            continue
        try:
            source.check(pruner.needs, pruner.name)
            served.append(pruner.bind(source.model))
        except TangoError as error:
            excluded[pruner.name] = str(error)
    return served


@contextmanager
def step(progress: tqdm, path: str, what: str) -> Iterator[None]:
    """Show what is being done, and count it when it is done."""
    progress.set_postfix_str(f"{Path(path).name}: {what}")
    yield
    progress.update()


def next_step(progress: tqdm, path: str, what: str) -> None:
    """Show what is being done, and count it at once."""
    with step(progress, path, what):
        pass


def sink_record(saliencies: Sequence[Tensor], videos: Sequence[Json]) -> Json | None:
    """The search for sinks as plain values; None: the videos' grids differ, so positions mean different places."""
    if len({tuple(video["grid"]) for video in videos}) > 1:
        return None
    search = find_sinks(saliencies)
    return {**asdict(search), "decides": search.decides}


def sink_text(search: Json | None, known: Sequence[int]) -> str:
    """A line about the fixed sinks that were found, and one about those that are known."""
    if search is None:
        return "sinks: not looked for, since the videos have different grids"
    rule = f"among the {search['top']} highest of nearly every frame in {search['least_videos']} videos"
    nearest, tried = search["nearest"], search["num_videos"]
    most = f"the most frequent position, {nearest['position']}, is there in {100 * nearest['frames']:.0f} % of frames"
    if not search["decides"]:
        text = f"sinks: {tried} videos cannot tell one from chance; give more, of other scenes ({most})"
    elif not search["sinks"]:
        text = f"sinks: none. No position is {rule}; {most}"
    else:
        found = ", ".join(f"{s['position']} ({s['videos']} videos, {s['height']:.1f} x mean)" for s in search["sinks"])
        text = f"sinks: {found}. Each is {rule}"
    return text + (f"\nknown for this model, and masked here: {', '.join(map(str, known))}" if known else "")


def format_record(record: Json) -> str:
    """Write the measurements as text: a table each for attention, clusters and methods, and a line about sinks."""
    videos = record["videos"]
    k = videos[0]["attention"]["selected_per_frame"]
    lines = [
        f"{record.get('tower') or record['model']}, saliency {record['saliency']}, ratio {record['retention_ratio']:g}",
        "\nattention, mean over frames: peaks above twice the mean; what the highest tokens hold, and how many tokens "
        f"hold half;\nthe share of peaks that {k} tokens touch, chosen as the highest, by Tango's rule, at random",
        align(_attention_rows(videos), num_left=1),
        "\nclusters within Tango's segments: share of a cluster that is in one piece, and number of its pieces;\n"
        "without ST-RoPE (none), and with it on frame numbers and on seconds",
        align(_cluster_rows(videos), num_left=1),
    ]
    if table := _method_rows(videos):
        lines += [
            "\nmethods, mean over videos: tokens kept; cosine of a token to the most similar one kept, anywhere and "
            "within 2 frames\n(a diagnostic, not a score)",
            align(table, num_left=1),
        ]
    lines.append("\n" + sink_text(record["sinks"], record["known_sinks"]))
    lines += [f"not measured: {name}: {reason}" for name, reason in record["not_measured"].items()]
    return "\n".join(lines)


def _attention_rows(videos: Sequence[Json]) -> list[list[str]]:
    shown = {f"{share:g}": f"top {100 * share:g} %" for share in (0.05, 0.1, 0.2)}
    rows = [["video", "frames", "grid", "peaks", *shown.values(), "half", "max/mean", "highest", "Tango", "random"]]
    for video in videos:
        measured, (H, W) = video["attention"], video["grid"]
        shape = [Path(video["video"]).name, str(video["frames"]), f"{H} x {W}", f"{measured['peaks_per_frame']:.1f}"]
        tail = [f"{measured['mass_of_top'][share]:.3f}" for share in shown]
        tail += [f"{100 * measured['tokens_for_half']:.0f} %", f"{measured['max_over_mean']:.1f}"]
        touched = ["-" if share is None else f"{share:.3f}" for share in measured["peaks_touched"].values()]
        rows.append([*shape, *tail, *touched])
    return rows


def _cluster_rows(videos: Sequence[Json]) -> list[list[str]]:
    rows = [["video", "segments", *ROPES, *(f"pieces: {rope}" for rope in ROPES)]]
    for video in videos:
        measured = video["clusters"]
        whole = [f"{measured[rope]['largest_part']:.3f}" for rope in ROPES]
        pieces = [f"{measured[rope]['parts']:.2f}" for rope in ROPES]
        rows.append([Path(video["video"]).name, str(measured["segments"]), *whole, *pieces])
    return rows


def _method_rows(videos: Sequence[Json]) -> list[list[str]]:
    """The table of methods, without those that refused a video; nothing if there is none."""
    by_method: dict[str, list[Json]] = {}
    for row in (row for video in videos for row in video["methods"]):
        by_method.setdefault(row["method"], []).append(row)
    table = [["method", "kept", "least-most", "covered", "within 2 frames"]]
    for name, rows in by_method.items():
        if len(rows) < len(videos):
            continue
        share = [100 * row["share"] for row in rows]
        covered = [statistics.fmean(row[key] for row in rows) for key in ("covered", "covered_within_2_frames")]
        kept = [f"{statistics.fmean(share):.1f} %", f"{min(share):.1f}-{max(share):.1f} %"]
        table.append([name, *kept, *(f"{value:.3f}" for value in covered)])
    return table if len(table) > 1 else []
