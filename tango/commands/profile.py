"""`tango profile`: times a model end to end, from the video to the last token, stage by stage, with several methods.

As long as no video file is read and no picture drawn, it needs only torch, transformers and accelerate, so that it runs
on a bare machine with a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import tango
from tango.commands.common import add_decoding_arguments, parsing, quiet, words
from tango.errors import OptionError, TangoError, UnknownNameError
from tango.evaluation import Efficiency, MethodConfig, environment
from tango.evaluation.efficiency import TTFT
from tango.files import make_folder, write_bytes, write_json
from tango.lab.bench import endtoend, random_model, roofline
from tango.lab.bench.common import number, positive, thread_count, threads
from tango.lab.bench.endtoend import Candidate, first_line
from tango.methods.plan import named_value
from tango.models import adapter_class
from tango.models.loading import available_attention, check_attention, choose_device
from tango.ops.llm_shapes import llm_of
from tango.profiling import StageTimer
from tango.report.results import Json
from tango.report.text import align, markdown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tango.models.processors.protocol import ChatProtocol

QUESTION = "What happens in this video?"
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_NEEDS = {  # option -> the option without which it means nothing
    "siglip": "model",
    "offline": "model",
    "layers": "random_weights",
    "tower_layers": "random_weights",
    "video_backend": "video",
}
_ALSO: dict[str, dict[str, Any]] = {  # name -> fields of a candidate
    "compiled": {"compiled": "default"},
    "static": {"static_cache": True},
    "flash": {"tower_attention": "flash_attention_2"},
}
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango profile`."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="hub id or local folder of a checkpoint")
    shapes = ", ".join(random_model.SHAPES)
    source.add_argument("--random-weights", choices=random_model.SHAPES, metavar="SHAPE", help=f"one of {shapes}")
    source.add_argument("--record", type=Path, metavar="FILE.json", help="show what --output wrote; measure nothing")
    add("--layers", type=positive, help="with --random-weights: layers of the LLM (as published)")
    add("--tower-layers", type=positive, help="with --random-weights: layers of the vision tower (as published)")
    add("--video", help="video file (made-up frames, which nobody has to read)")
    add("--video-backend", default="auto", help="auto, pyav, torchcodec or decord (auto)")
    add("--num-frames", type=positive, help="frames of the video (the model's usual number)")
    add("--question", type=words, default=QUESTION, help=f"what is asked ({QUESTION})")
    add(
        "--methods",
        default="none,tango",
        metavar="NAMES",
        help="with commas between; none: all tokens; stock: transformers without Tango; name:option=value sets an "
        "option, such as tango:engine=plain, the paper's page as it stands (none,tango)",
    )
    add("--ratios", default="0.1", metavar="RATIOS", help="fractions of visual tokens kept, with commas between (0.1)")
    add("--saliency", metavar="NAME", help="source of saliency: p-attn, attn (each method's own)")
    add("--siglip", help="with --model: hub id or folder of the SigLIP that has the pooling head (see README)")
    add("--offline", action="store_true", help="use local files only, never the hub")
    add("--dtype", choices=_DTYPES, default="auto", help="auto: as load does; of random weights 16 bit on a GPU (auto)")
    add("--device", help="cpu, cuda, cuda:1 ... (CUDA if there is one)")
    add("--attn-implementation", help="sdpa, flash_attention_2, eager (the model's default)")
    add(
        "--tower-attn-implementation",
        metavar="NAMES",
        help="of the tower alone; several: every method with each of them",
    )
    add(
        "--compile",
        choices=_COMPILE_MODES,
        nargs="?",
        const=_COMPILE_MODES[0],
        metavar="MODE",
        help=f"run the tower through torch.compile: {', '.join(_COMPILE_MODES)} ({_COMPILE_MODES[0]})",
    )
    add_decoding_arguments(parser)
    add(
        "--also",
        default="",
        metavar="NAMES",
        help="then measure the first method that prunes once more with each of: compiled (tower), static (cache), "
        "flash (flash_attention_2 in the tower); with commas between",
    )
    add("--roofline", action="store_true", help="also the least time of every stage on this machine, measured first")
    add("--repeats", type=positive, default=5, help="measured rounds, after one that warms up (5)")
    add("--max-new-tokens", type=positive, default=32, help="tokens to generate, always all of them (32)")
    add("--threads", type=thread_count, help="threads of torch on the CPU (torch's choice)")
    add("--markdown", action="store_true", help="print tables in Markdown")
    add("--output", type=Path, metavar="FILE.json", help="write everything as JSON, anew after every round")
    add("--plot", type=Path, metavar="FILE.png", help="stacked bars of the time to the first token (by matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Exit codes: 0 done, 1 a row failed."""
    _refuse_what_does_nothing(args)
    for path in (args.output, args.plot):
        if path is not None and path.is_dir():
            raise TangoError(f"expected a file to write to, {path} is a folder")
        if path is not None:
            make_folder(path.parent)
    if args.plot is not None and find_spec("matplotlib") is None:
        raise TangoError(
            '--plot needs matplotlib: pip install "matplotlib>=3.8"; or write --output and plot that elsewhere with '
            "--record"
        )
    record = _measured(args) if args.record is None else _recorded(args.record)
    print(format_markdown(record) if args.markdown else format_text(record))
    if args.plot is not None:
        write_bytes(args.plot, plot(record))
    failed = [row for row in record["rows"] if row["error"] is not None]
    if len(failed) == len(record["rows"]):
        raise TangoError(f"nothing could be measured: {failed[0]['label']}: {failed[0]['error']}")
    return 1 if failed else 0


def _refuse_what_does_nothing(args: argparse.Namespace) -> None:
    """Refuse options that differ from their defaults and would be ignored."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args(["--record", "FILE.json"]))
    for name, default in defaults.items():
        flag, given = f"--{name.replace('_', '-')}", getattr(args, name) != default
        if given and args.record is not None and name not in ("record", "markdown", "plot"):
            raise OptionError(f"{flag} is for measuring; --record shows what was measured before")
        if given and name in _NEEDS and getattr(args, _NEEDS[name]) is None:
            raise OptionError(f"{flag} needs --{_NEEDS[name].replace('_', '-')}")


def _recorded(path: Path) -> Json:
    with parsing(path):
        record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("benchmark") != "profile" or not _is_whole(record):
        raise TangoError(f"{path} was not written by tango profile --output")
    return record


def _is_whole(record: Json) -> bool:
    """Whether a record can be shown: try to make its tables."""
    try:
        format_text(record)
        format_markdown(record)
        return all(isinstance(row["label"], str) and "error" in row for row in record["rows"]) and bool(record["rows"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False


def candidates_from(args: argparse.Namespace) -> list[Candidate]:
    """Every method at every ratio, with every attention implementation of the tower, then what `--also` names.

    Mistakes show here.

    Raises:
        UnknownNameError: no such method, attention implementation or name for `--also`.
        OptionError, BudgetError: a ratio is no number, or out of range.
    """
    ratios = []
    for text in _names(args.ratios):
        try:
            ratios.append(float(text))
        except ValueError as error:
            raise OptionError(f"--ratios needs numbers with commas between, got {args.ratios!r}") from error
    methods: list[tuple[MethodConfig, bool]] = []  # and whether it is stock transformers
    for text in _names(args.methods):
        if text == "tango-plain":
            print("tango: warning: tango-plain is deprecated; write tango:engine=plain", file=sys.stderr)
            text = "tango:engine=plain"
        name, *given = re.split(r":(?=[^:]*=)", text)  # a value may have colons, too
        if text == "stock":
            methods.append((MethodConfig(), True))
            continue
        if ":" in name:
            raise OptionError(f"--methods needs name:option=value, got {text!r}")
        settings: dict[str, str] = {} if args.saliency is None else {"saliency": args.saliency}
        settings |= dict(named_value(item, "name:option=value", "--methods") for item in given)
        methods += [
            (MethodConfig.from_settings({"method": name, **own}, settings, release=False), False)
            for own in ([{}] if name == "none" else [{"retention_ratio": ratio} for ratio in ratios])
        ]
    towers: Sequence[str | None] = _names(args.tower_attn_implementation or "") or [None]
    for tower in towers:
        if tower is not None:
            check_attention(tower)
    if not methods:
        raise OptionError("--methods and --ratios must name at least one of each")
    found = [
        Candidate(method=method, stock=stock, tower_attention=tower, static_cache=args.static_cache)
        for tower in towers
        for method, stock in methods
    ]
    return found + _also(found, args)


def _also(candidates: Sequence[Candidate], args: argparse.Namespace) -> list[Candidate]:
    """The first candidate that prunes, in the settings that `--also` names; compared with all tokens as they are."""
    names = _names(args.also)
    for name in names:
        if name not in _ALSO:
            raise UnknownNameError("name for --also", name, _ALSO)
    for name, given in (("compiled", args.compile), ("static", args.static_cache)):
        if name in names and given:
            raise OptionError(f"--also {name} compares with runs that are not; leave out the option for all of them")
    first = next((one for one in candidates if one.method.method != "none"), None)
    if names and first is None:
        raise OptionError("--also needs a method that prunes among --methods")
    plain = [one for one in candidates if one.method.method == "none" and one.setting == (first and first.setting)]
    against = next((one.label for one in sorted(plain, key=lambda one: not one.stock)), None)
    return [
        replace(first, answers=[], alone=True, against=against, **_ALSO[name]) for name in names if first is not None
    ]


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _measured(args: argparse.Namespace) -> Json:
    candidates = candidates_from(args)
    if args.attn_implementation is not None:
        check_attention(args.attn_implementation)
    device = choose_device(args.device)
    quiet()
    with contextlib.ExitStack() as stack:
        if args.threads is not None:
            stack.enter_context(threads(args.threads))
        if args.video is not None:  # mistakes in the file show before minutes of loading
            tango.read_video(args.video, num_frames=1, backend=args.video_backend)
        try:
            model, processor = _load(args, device)
        except torch.OutOfMemoryError as error:
            raise TangoError(f"the model does not fit into the memory of {device}: {first_line(error)}") from error
        num_frames = args.num_frames or processor.default_num_frames
        if args.compile:
            stack.enter_context(tango.compile_tower(model, mode=args.compile))
        where = environment()
        config = _config(args, model, num_frames, cpu=where["cpu"])
        record: dict[str, object] = {}

        def update() -> None:
            rows = endtoend.summarise(model, candidates)
            record.update(benchmark="profile", config=config, environment=where, rows=rows)
            if args.output is not None:
                write_json(args.output, record)

        total = (1 + args.repeats) * len(candidates)
        with tqdm(total=total, desc="profile", unit="run", file=sys.stderr) as progress:
            make = _input_maker(args, processor, num_frames, model)
            together = [one for one in candidates if not one.alone]
            for group in [together, *([one] for one in candidates if one.alone)]:
                with _compiled(model, group[0]):
                    endtoend.measure(
                        model,
                        group,
                        make,
                        repeats=args.repeats,
                        max_new_tokens=args.max_new_tokens,
                        after_run=progress.update,
                        after_round=update,
                    )
                if group[0].error is not None:  # perhaps before a round could end
                    update()
    return record


def _compiled(model: PreTrainedModel, one: Candidate) -> contextlib.AbstractContextManager[object]:
    """The scope of a candidate with a compiled tower; one that cannot have it fails alone."""
    try:
        return contextlib.nullcontext() if one.compiled is None else tango.compile_tower(model, mode=one.compiled)
    except TangoError as error:
        one.error = f"{type(error).__name__}: {first_line(error)}"
        return contextlib.nullcontext()


def _load(args: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, ChatProtocol]:
    if args.model is not None:
        return tango.load(
            args.model,
            dtype=args.dtype,
            device=device,
            attn_implementation=args.attn_implementation,
            siglip=args.siglip,
            local_files_only=args.offline,
        )
    return random_model.build(
        args.random_weights,
        device=device,
        dtype=getattr(torch, _dtype(args.dtype, device)),
        attn_implementation=available_attention(args.attn_implementation, device),
        layers=args.layers,
        tower_layers=args.tower_layers,
    )


def _dtype(name: str, device: torch.device) -> str:
    """The dtype of random weights: bfloat16 on a GPU that has it, else float16; float32 on the CPU."""
    if device.type != "cuda" or name not in ("auto", "bfloat16"):
        return "float32" if name == "auto" else name
    if torch.cuda.get_device_capability(device) >= (8, 0):  # asks this GPU, not the current one
        return "bfloat16"
    warnings.warn("this GPU has no bfloat16; using float16", stacklevel=2)
    return "float16"


def _input_maker(
    args: argparse.Namespace, processor: ChatProtocol, num_frames: int, model: PreTrainedModel
) -> Callable[[], endtoend.Inputs]:
    """A function that reads the video and makes the model's inputs, anew for every round."""
    made_up = None if args.video is not None else endtoend.synthetic_video(num_frames)

    def make() -> endtoend.Inputs:
        timer, video = StageTimer(), made_up
        if video is None:
            with timer.stage("read"):
                video = tango.read_video(args.video, num_frames=num_frames, backend=args.video_backend)
        with timer.stage("preprocess"):  # includes the move of the inputs to the model's device
            inputs = tango.prepare(processor, video, args.question).to(model.device)
            endtoend.synchronize(model.device)
        return inputs, timer.ms()

    return make


def _config(args: argparse.Namespace, model: PreTrainedModel, num_frames: int, cpu: str) -> Json:
    """The setting that was measured, with all defaults resolved."""
    device, adapter = model.device, adapter_class(model.config)
    asked = ("video", "question", "saliency", "compile", "static_cache", "also", "repeats", "max_new_tokens")
    ceilings = roofline.measure_ceilings(device, model.dtype) if args.roofline else None
    return {
        "model": args.model or args.random_weights,
        "random_weights": args.model is None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "tower_layers": len(adapter.tower_blocks(model)),
        "num_frames": num_frames,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config._attn_implementation,
        "tower_attn_implementation": adapter.tower(model).config._attn_implementation,
        "threads": torch.get_num_threads(),
        **{name: getattr(args, name) for name in asked},
        "ceilings": None if ceilings is None else asdict(ceilings),
        "counted": llm_of(model.config).note,
        "note": Efficiency(device=device.type).note,
    }


_HEADER = (
    "method", "visual tokens", "prompt", *TTFT, "TTFT ms (min-max)",
    "decoding token/s", "peak GiB", "TTFT", "prefill", "prefill by FLOPs",
)  # fmt: skip


def _cells(row: Json) -> list[str]:
    if not row["runs"]:
        return [row["label"], *["-"] * (len(_HEADER) - 1)]
    tokens, stages, speedup = row["tokens"], row["stages_ms"], row["speedup"]
    visual = f"{tokens['tokens_after']}"
    if tokens["mean"] < tokens["tokens_after"]:
        visual += f" (mean {tokens['mean']:.0f})"
    ttft = row["ttft_ms"]
    return [
        row["label"],
        visual,
        str(tokens["prompt_after"][0]),
        *(number(stages[stage]["median"]) if stage in stages else "-" for stage in TTFT),
        f"{number(ttft['median'])} ({number(ttft['min'])}-{number(ttft['max'])})",
        _median(row["decoding_tokens_per_s"], 1),
        f"{row['peak_bytes'] / 2**30:.2f}",
        _median(speedup["ttft"], 2, " x"),
        _median(speedup["prefill"], 2, " x"),
        f"{speedup['prefill_by_flops']:.2f} x",
    ]


def _table(rows: Sequence[Json]) -> list[Sequence[str]]:
    """Header and rows. The last column is there only if all tokens with an eager tower were measured."""
    gains = [_median(row.get("speedup", {}).get("ttft_over_eager"), 2, " x") for row in rows]
    table: list[Sequence[str]] = [_HEADER, *map(_cells, rows)]
    if set(gains) <= {"-"}:
        return table
    return [[*row, cell] for row, cell in zip(table, ["TTFT over none, eager tower", *gains], strict=True)]


def _median(spread: dict[str, float] | None, digits: int, unit: str = "") -> str:
    return "-" if spread is None else f"{spread['median']:.{digits}f}{unit}"


def _lines(record: Json) -> tuple[list[str], list[str]]:
    """The lines above and below the table."""
    config, rows = record["config"], record["rows"]
    weights = ", random weights" if config["random_weights"] else ""
    depth = f"{config['layers']} layers, tower of {config['tower_layers']}"
    depth += f", compiled: {config['compile']}" if config["compile"] else ""
    stock = any(row.get("stock") and row["runs"] for row in rows)
    above = [
        f"{config['model']}{weights} ({depth}), {config['num_frames']} frames, {config['dtype']}, "
        f"{config['attn_implementation']}, {config['device_name']}"
        + (f", threads: {config['threads']}" if config["device"] == "cpu" else ""),
        f"medians of {max(row['runs'] for row in rows)} alternating runs in ms; "
        f"speed-ups over {'stock transformers' if stock else 'all tokens'} with the same tower, run by run",
    ]
    shared: Json = next((row["stages_ms"] for row in rows if row["runs"]), {})
    before = [f"{name} {shared[name]['median']:.1f}" for name in ("read", "preprocess") if name in shared]
    below = [f"before all of them, ms: {', '.join(before)}"] if before else []
    below.append(f"{config['max_new_tokens']} new tokens; the first belongs to the prefill, decoding is the others")
    below.append(
        "TTFT: from the start of the tower to the end of the prefill; between: the part of it that is in no stage"
    )
    if config.get("counted") is not None:  # records from before have none
        below.append(f"FLOPs of the LLM: {config['counted']}")
    below += [
        f"first run of {row['label']}, with compiling: {row['first_run_ms'] / 1e3:.1f} s"
        for row in rows
        if row["runs"] and (row.get("static_cache") or row.get("compiled"))
    ]
    below.append(config["note"] + (" so far, of all rows" if config["device"] == "cpu" else ""))
    return above, below + [f"failed: {row['label']}: {row['error']}" for row in rows if row["error"] is not None]


def format_text(record: Json) -> str:
    """Write the rows as a table, and the floors of their stages as another if they were measured."""
    (above, below), floors = _lines(record), roofline.table(record)
    lines = [*above, align(_table(record["rows"]), num_left=1), *below]
    return "\n".join(lines if floors is None else [*lines, floors[0], align(floors[1], num_left=1)])


def format_markdown(record: Json) -> str:
    """Write the rows as a table in Markdown, and another table with the eight rows of the paper's release."""
    (above, below), floors = _lines(record), roofline.table(record)
    measured = [row for row in record["rows"] if row["runs"]]
    says = "(means over the same runs; Avg_Total_TTFT is the sum of the three rows above it, without what is between)"
    release = [["Metric", *(row["label"] for row in measured)]]
    for name in measured[0]["release_table"] if measured else ():
        release.append([name, *(number(row["release_table"][name], 2) for row in measured)])
    return "\n".join(
        [*above, "", markdown(_table(record["rows"])), "", *(f"- {line}" for line in below)]
        + ([] if floors is None else ["", floors[0], "", markdown(floors[1])])
        + (["", markdown(release), "", says] if measured else [])
    )


def plot(record: Json) -> bytes:
    """Draw the stages up to the first token as a PNG, with a bar for each row that was measured.

    Raises:
        TangoError: no row was measured, or matplotlib is not installed.
    """
    from tango.report.plots import stacked_bars

    rows = [
        (row["label"], {stage: row["stages_ms"][stage]["median"] for stage in TTFT if stage in row["stages_ms"]})
        for row in record["rows"]
        if row["runs"]
    ]
    if not rows:
        raise TangoError("there is nothing to plot: no row was measured")
    above, _ = _lines(record)
    return stacked_bars(rows, title=f"Time to the first token\n{above[0]}")
