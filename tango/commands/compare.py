"""`tango compare`: what several methods keep of one video. The video is encoded once; all methods see the same tokens.

Intra-LLM methods depend on the question, too. Given one, each of them runs on the whole prompt.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

import tango
from tango.commands.common import (
    add_model_arguments,
    add_video_arguments,
    load_model,
    num_frames_from,
    words,
)
from tango.containers import PrunedTokens, Signal, Video, VisualTokens
from tango.errors import OptionError, TangoError, UnknownNameError
from tango.files import make_folder, write_bytes, write_json
from tango.methods import (
    LayerPruner,
    Plan,
    Pruner,
    available_layer_pruners,
    available_pruners,
    build_pruner,
    method_class,
    pruner_class,
)
from tango.methods.plan import named_value, read_options
from tango.models import Adapter, adapter_class
from tango.profiling import StageTimer
from tango.report import figures
from tango.report.results import Json
from tango.report.text import align

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INTRA = "is intra-LLM, so what it keeps depends on the question; give one with --question"
_QUERY_AWARE = "keeps what fits the question; give one with --question"
Run = tuple[PrunedTokens, tuple[float, ...]]  # what a method keeps; milliseconds of its timed runs


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One video and its visual tokens, with the time of each stage until then, in one run without warm-up."""

    video: Video
    tokens: VisualTokens
    stages_ms: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one method keeps of the tokens, and the time of each run (none for intra-LLM methods)."""

    pruner: Pruner | LayerPruner
    pruned: PrunedTokens
    times_ms: tuple[float, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango compare`."""
    add_video_arguments(parser)
    add_model_arguments(parser, saliency="p-attn")
    add = parser.add_argument
    add(
        "--methods", default="all", metavar="NAMES", help="names with commas between, see `tango methods`; or all (all)"
    )
    add("--retention-ratio", type=float, default=0.1, help="fraction of visual tokens kept, in (0, 1] (0.1)")
    add("--exact-budget", action="store_true", help="let every method keep exactly that fraction")
    add(
        "--option", action="append", default=[], metavar="METHOD.NAME=VALUE", help="an option of one method; repeatable"
    )
    add(
        "--question",
        type=words,
        help="ask this, so that intra-LLM methods can be compared, by what their last layer leaves",
    )
    add("--repeats", type=int, default=3, help="timed runs of each method, of which the median is reported (3)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="write compare.json, and for each method a picture METHOD.png of what it keeps",
    )
    add("--json", action="store_true", help="print one JSON object, with every kept index")


def run(args: argparse.Namespace) -> int:
    """Run the vision tower once and every method on its tokens, not the language model."""
    pruners, plans, excluded = choose(args)  # before the video and the model: mistakes show before minutes of loading
    if args.repeats < 1:
        raise OptionError(f"--repeats must be at least 1, got {args.repeats}")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise TangoError(f"--output needs a folder, {args.output} is a file")
    if args.output is not None:
        make_folder(args.output)
    timer = StageTimer()
    frames = num_frames_from(args)
    with timer.stage("read"):
        video = tango.read_video(args.video, num_frames=frames, backend=args.video_backend)
    model, processor = load_model(args)
    adapter = adapter_class(model.config)(model, saliency=args.saliency)
    pruners = servable(adapter, pruners, excluded)
    intra = solved(model, plans, excluded)
    _refuse_if_none([*pruners, *intra], excluded)
    with tqdm(total=len(pruners) + len(intra) + 1, desc="compare", unit="step", file=sys.stderr) as progress:
        progress.set_postfix_str("encoding the video")
        with timer.stage("preprocess"):
            inputs = tango.prepare(processor, video, args.question or "").to(model.device)
        encoded = encode(adapter, video, inputs, pruners, timer)
        runs = [functools.partial(pre_llm, pruner, encoded.tokens, args.repeats) for pruner in pruners]
        runs += [functools.partial(intra_llm, pruner, model, inputs, encoded.tokens) for pruner in intra]
        results = compare([*pruners, *intra], runs, encoded, excluded, progress, output=args.output)
    record = _record(args, encoded, results, excluded)
    if args.output is not None:
        write_json(args.output / "compare.json", record)
    print(json.dumps(record) if args.json else format_record(record))
    return 0


def choose(args: argparse.Namespace) -> tuple[list[Pruner], dict[str, Plan], dict[str, str]]:
    """The pre-LLM methods to compare; plans of the intra-LLM ones; why others cannot be compared, by name.

    Raises:
        UnknownNameError: no such method or option; TangoError: an option is not METHOD.NAME=VALUE of a chosen method.
    """
    known = [*available_pruners(), *available_layer_pruners()]
    names = known if args.methods == "all" else list(dict.fromkeys(name.strip() for name in args.methods.split(",")))
    for name in names:
        if name not in known:
            raise UnknownNameError("method", name, ["all", *known])
    excluded = {} if args.question is not None else {name: why for name in names if (why := _needs_question(name))}
    options: dict[str, dict[str, object]] = {name: {} for name in names if name not in excluded}
    for item in args.option:
        key, text = named_value(item, "METHOD.NAME=VALUE")
        method, dot, name = key.partition(".")
        if not dot:
            raise OptionError(f"--option needs METHOD.NAME=VALUE, got {item!r}")
        if method not in options:
            raise UnknownNameError("method to compare", method, options)
        options[method] |= read_options(method_class(method), {name.replace("-", "_"): text})
    shared = {"retention_ratio": args.retention_ratio, "exact_budget": args.exact_budget}
    pre = {name: own for name, own in options.items() if name in available_pruners()}
    pruners = [build_pruner(name, **{**shared, **own}) for name, own in pre.items()]
    mean = {"retention_ratio": args.retention_ratio}
    intra = {name: Plan.of(name, {**mean, **own}) for name, own in options.items() if name not in pre}
    return pruners, intra, excluded


def _needs_question(name: str) -> str | None:
    """Why a method cannot be compared without a question; None: it can."""
    if name not in available_pruners():
        return _INTRA
    return _QUERY_AWARE if Signal.TEXT in pruner_class(name).needs else None


def solved(model: PreTrainedModel, plans: Mapping[str, Plan], excluded: dict[str, str]) -> list[LayerPruner]:
    """Build intra-LLM methods at the ratio that gives their mean over the layers; the others join `excluded`."""
    built: list[LayerPruner] = []
    num_layers = model.config.get_text_config().num_hidden_layers
    for name, plan in plans.items():
        try:
            built += [pruner for pruner in plan.pruners(num_layers)[1:] if pruner is not None]
        except TangoError as error:
            excluded[name] = str(error)
    return built


def servable(adapter: Adapter, pruners: Sequence[Pruner], excluded: dict[str, str]) -> list[Pruner]:
    """Bind the methods whose signals this model supplies to it; the others join `excluded`."""
    served = []
    for pruner in pruners:
        try:
            adapter.check(pruner.needs, pruner.name)
            served.append(pruner.bind(adapter.model))
        except TangoError as error:
            excluded[pruner.name] = str(error)
    return served


def encode(
    adapter: Adapter, video: Video, inputs: Mapping[str, Tensor], pruners: Sequence[Pruner], before: StageTimer
) -> Encoded:
    """Encode the video once, with every signal that any of the methods wants."""
    wants = functools.reduce(operator.or_, (pruner.wants for pruner in pruners), Signal.NONE)
    timer = StageTimer(adapter.model.device)
    with torch.inference_mode(), adapter.tower_scope():
        (tokens,) = adapter.encode_videos(inputs, wants, timer).videos
    # Nothing has been pruned yet: what adapters time as "prune" here is saliency and other signals.
    stages = {"signals" if stage == "prune" else stage: ms for stage, ms in timer.ms().items()}
    return Encoded(video=video, tokens=tokens, stages_ms={**before.ms(), **stages})


@torch.inference_mode()
def compare(
    pruners: Sequence[Pruner | LayerPruner],
    runs: Sequence[Callable[[], Run]],
    encoded: Encoded,
    excluded: dict[str, str],
    progress: tqdm,
    *,
    output: Path | None = None,
) -> list[Result]:
    """Run every method; a method that refuses these tokens joins `excluded`. Pictures are written one by one.

    Raises:
        TangoError: all methods refuse.
    """
    results: list[Result] = []
    tiles = None if output is None else figures.thumbnails(encoded.video.frames.numpy(), encoded.tokens.grid)
    for pruner, run_once in zip(pruners, runs, strict=True):
        progress.update()
        progress.set_postfix_str(pruner.name)
        try:
            pruned, times = run_once()
        except TangoError as error:
            excluded[pruner.name] = str(error)
            continue
        results.append(Result(pruner=pruner, pruned=pruned, times_ms=times))
        if output is not None and tiles is not None:
            write_bytes(output / f"{pruner.name}.png", draw(encoded, tiles, results[-1]))
    progress.update()
    _refuse_if_none(results, excluded)
    return results


def pre_llm(pruner: Pruner, tokens: VisualTokens, repeats: int) -> Run:
    """Run a pre-LLM method, once for what it keeps and then `repeats` times for the clock."""
    pruned = pruner(tokens)
    return pruned, tuple(_time_ms(pruner, tokens) for _ in range(repeats))


def intra_llm(pruner: LayerPruner, model: PreTrainedModel, inputs: Mapping[str, Tensor], tokens: VisualTokens) -> Run:
    """Run an intra-LLM method on a prompt, for the visual tokens that reach the last layer; newlines do not count."""
    with tango.prune(model, pruner) as pruning:
        model(**inputs, use_cache=False)
    assert pruning.stats is not None
    assert pruning.stats.layer is not None
    (T, N, D), W = tokens.features.shape, tokens.grid[1]
    ((frames, positions),) = pruning.stats.layer.places
    if pruning.stats.entering_before // T > N:  # rows of W + 1: each row of a frame ends with a newline
        positions = torch.where(positions % (W + 1) < W, positions - positions // (W + 1), N)
    indices = (frames * N + positions)[(frames < T) & (positions < N)]
    return PrunedTokens(features=tokens.features.flatten(0, 1)[indices].view(-1, D), indices=indices), ()


def _time_ms(pruner: Pruner, tokens: VisualTokens) -> float:
    timer = StageTimer(tokens.features.device)
    with timer.stage("prune"):
        pruner(tokens)
    return timer.ms()["prune"]


def _refuse_if_none(left: Sequence[object], excluded: dict[str, str]) -> None:
    if not left:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded.items())
        raise TangoError(f"none of the methods can be compared. {reasons}")


def draw(encoded: Encoded, tiles: NDArray[np.uint8], result: Result) -> bytes:
    """Draw all sampled frames as a PNG: kept tokens bright, dropped ones grey, merged ones blue."""
    T, N, _ = encoded.tokens.features.shape
    states = token_states(encoded.tokens, result.pruned)
    F, K = len(tiles), len(result.pruned.indices)
    per_step = -(-F // T)  # sampled frames that share their tokens
    seconds = encoded.video.timestamps_s.tolist()
    legend = "bright: kept; grey: dropped"
    if result.pruned.assignment is not None:
        legend = "bright: kept; blue: merged into a kept token; grey: dropped"
    caption = [f"{result.pruner.name}: {K} of {T * N} visual tokens kept ({100 * K / (T * N):.1f} %)", legend]
    labels = [f"frame {i}, {time:.2f} s" for i, time in enumerate(seconds)]
    return figures.png(figures.contact_sheet(tiles, states[np.arange(F) // per_step], labels, caption))


def token_states(tokens: VisualTokens, pruned: PrunedTokens) -> NDArray[np.uint8]:
    """What became of each token (T, H, W): KEPT, MERGED or DROPPED of `tango.report.figures`."""
    T, N, _ = tokens.features.shape
    states = np.full(T * N, figures.DROPPED, dtype=np.uint8)
    if pruned.assignment is not None:
        states[pruned.assignment.cpu().numpy() >= 0] = figures.MERGED
    states[pruned.indices.cpu().numpy()] = figures.KEPT
    return states.reshape(T, *tokens.grid)


def overlap(kept: Sequence[Tensor], num_tokens: int) -> list[list[float]]:
    """The Jaccard index of every two sets of kept tokens: tokens in both as a fraction of those in either."""
    member = torch.zeros(len(kept), num_tokens, dtype=torch.float64)
    for row, indices in zip(member, kept, strict=True):
        row[indices.cpu()] = 1
    common, sizes = member @ member.T, member.sum(1)
    return (common / (sizes[:, None] + sizes - common)).tolist()


def _record(args: argparse.Namespace, encoded: Encoded, results: Sequence[Result], excluded: dict[str, str]) -> Json:
    T, N, _ = encoded.tokens.features.shape
    return {
        "video": args.video,
        "model": args.model,
        "question": args.question,
        "saliency": args.saliency,
        "retention_ratio": args.retention_ratio,
        "exact_budget": args.exact_budget,
        "grid": list(encoded.tokens.grid),
        "timestamps_s": encoded.tokens.timestamps_s.tolist(),
        "frame_indices": list(encoded.video.frame_indices),
        "frame_timestamps_s": encoded.video.timestamps_s.tolist(),
        "tokens_before": T * N,
        "stages_ms": encoded.stages_ms,
        "repeats": args.repeats,
        "methods": [
            {
                "method": result.pruner.name,
                "options": result.pruner.config(),
                "tokens_after": len(result.pruned.indices),
                "share": len(result.pruned.indices) / (T * N),
                "prune_ms": statistics.median(result.times_ms) if result.times_ms else None,
                "prune_min_ms": min(result.times_ms, default=None),
                "prune_max_ms": max(result.times_ms, default=None),
                "indices": result.pruned.indices.tolist(),
            }
            for result in results
        ],
        "overlap": overlap([result.pruned.indices for result in results], T * N),
        "not_compared": excluded,
    }


def format_record(record: Json) -> str:
    """Write the comparison as text: shared stages, a line per method, and the overlap of any two."""
    methods = record["methods"]
    stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in record["stages_ms"].items())
    T = len(record["timestamps_s"])
    shape = " x ".join(map(str, (T, *record["grid"])))
    rows = [["method", "kept", "share", "ms", "min-max"]]
    rows += [
        [
            m["method"],
            str(m["tokens_after"]),
            f"{100 * m['share']:.1f} %",
            "-" if m["prune_ms"] is None else f"{m['prune_ms']:.2f}",
            "-" if m["prune_ms"] is None else f"{m['prune_min_ms']:.2f}-{m['prune_max_ms']:.2f}",
        ]
        for m in methods
    ]
    matrix = [["", "", *(str(i) for i in range(1, len(methods) + 1))]]
    for i, (method, row) in enumerate(zip(methods, record["overlap"], strict=True), start=1):
        matrix.append([str(i), method["method"], *(f"{value:.2f}" for value in row)])
    lines = [
        f"{record['video']}: {record['tokens_before']} visual tokens ({shape})",
        f"shared by all methods, ms: {stages}",
        f"\npruning step alone, median of {record['repeats']}",
        align(rows, num_left=1),
        "\nkept tokens in common, as a fraction of those that either keeps",
        align(matrix, num_left=2),
    ]
    if record["not_compared"]:
        names: dict[str, list[str]] = {}
        for name, reason in record["not_compared"].items():
            names.setdefault(reason, []).append(name)
        lines += ["\nnot compared", *(f"{', '.join(alike)}: {reason}" for reason, alike in names.items())]
    return "\n".join(lines)
