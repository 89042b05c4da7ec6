"""`tango flops`: what pruning saves in the language model, counted from its shape alone."""

from __future__ import annotations

import argparse
import json
import math

from tango.errors import OptionError
from tango.ops.budget import exact_count
from tango.ops.flops import check_layer, mean_retention_ratio, solve_retention_ratio
from tango.ops.llm_shapes import PUBLISHED_SHAPES, Shape, llm_of
from tango.report.results import Json

_MOST = 10**9  # frames or tokens; more is a typing mistake


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango flops`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="hub id or local folder of a checkpoint; only its config.json is read")
    known = ", ".join(PUBLISHED_SHAPES)
    source.add_argument("--shape", choices=PUBLISHED_SHAPES, metavar="NAME", help=f"a published shape: {known}")
    parser.add_argument("--frames", type=int, help="frames of the video (the model's usual number)")
    parser.add_argument("--text-tokens", type=int, default=120, help="tokens of the prompt that are no video (120)")
    ratio = parser.add_mutually_exclusive_group()
    ratio.add_argument("--retention-ratio", type=float, help="fraction of visual tokens that enters the LLM (0.1)")
    ratio.add_argument("--mean-retention-ratio", type=float, help="the same, averaged over the LLM's layers")
    parser.add_argument("--layer", type=int, help="prune again at the input of this layer")
    parser.add_argument("--layer-retention-ratio", type=float, help="fraction kept there (0.5)")
    parser.add_argument("--offline", action="store_true", help="use local files only, never the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Count with all tokens and with those that are kept, and compare."""
    shape = PUBLISHED_SHAPES[args.shape] if args.shape else _shape_of(args.model, args.offline)
    frames = shape.default_frames if args.frames is None else args.frames
    if frames < 1 or args.text_tokens < 0:
        raise OptionError(f"--frames must be at least 1 and --text-tokens at least 0, got {frames}, {args.text_tokens}")
    if frames > _MOST or args.text_tokens > _MOST:
        raise OptionError(f"--frames and --text-tokens must be at most {_MOST}")
    if args.layer is None and args.layer_retention_ratio is not None:
        raise OptionError("--layer-retention-ratio needs --layer")
    if args.layer is not None and shape.delta_layers:
        raise OptionError("--layer is for models without linear attention, whose state cannot forget a token")
    layer_ratio = 1.0
    if args.layer is not None:
        layer_ratio = 0.5 if args.layer_retention_ratio is None else args.layer_retention_ratio
    intra = {"num_layers": shape.num_layers, "layer": args.layer, "layer_retention_ratio": layer_ratio}
    ratio = 0.1 if args.retention_ratio is None else args.retention_ratio
    if args.mean_retention_ratio is not None:
        ratio = solve_retention_ratio(args.mean_retention_ratio, **intra)
    for name, value in (("retention ratio", ratio), ("layer retention ratio", layer_ratio)):
        if not 0 < value <= 1:
            raise OptionError(f"the {name} must lie in (0, 1], got {value!r}")
    full = count(shape, frames, args.text_tokens, 1.0)
    pruned = count(shape, frames, args.text_tokens, ratio, args.layer, layer_ratio)
    record = {
        "model": args.shape or args.model,
        "frames": frames,
        "text_tokens": args.text_tokens,
        "retention_ratio": ratio,
        "layer": args.layer,
        "layer_retention_ratio": None if args.layer is None else layer_ratio,
        "mean_retention_ratio": mean_retention_ratio(ratio, **intra),
        "all": full,
        "pruned": pruned,
        "flops_ratio": pruned["prefill_flops"] / full["prefill_flops"],
        "counted": shape.note,
    }
    print(json.dumps(record) if args.json else _table(record))
    return 0


def count(
    shape: Shape, frames: int, text_tokens: int, ratio: float, layer: int | None = None, layer_ratio: float = 1.0
) -> dict[str, int]:
    """Count tokens, prefill FLOPs and bytes of the KV cache, for one prompt with one video.

    Raises:
        BudgetError: the LLM has no layer `layer`.
    """
    if layer is not None:
        check_layer(layer, shape.num_layers)
    steps = math.ceil(frames / shape.frames_per_step)
    visual = exact_count(steps * shape.tokens_per_step, ratio)
    newlines = round(shape.num_newlines(steps, visual))
    after = exact_count(visual + newlines, layer_ratio)
    first = shape.num_layers if layer is None else layer
    tokens = [text_tokens + visual + newlines] * first + [text_tokens + after] * (shape.num_layers - first)
    return {
        "visual_tokens": visual,
        "newline_tokens": newlines,
        "prompt_tokens": tokens[0],
        "last_layer_tokens": tokens[-1],
        "prefill_flops": shape.prefill_flops(tokens),
        "kv_cache_bytes": shape.kv_cache_bytes(tokens),
    }


def _shape_of(path_or_id: str, offline: bool) -> Shape:
    """Read the shape from a checkpoint's config."""
    from tango.commands.common import quiet
    from tango.models import loading
    from tango.models.hub import CONFIG_FILES, resolve_folder

    quiet()
    config, adapter = loading.read_config(resolve_folder(path_or_id, local_files_only=offline, patterns=CONFIG_FILES))
    return Shape(
        **vars(llm_of(config)),
        tokens_per_step=adapter.tokens_per_step(config),
        frames_per_step=adapter.frames_per_step(config),
        newlines=adapter.newlines,
        default_frames=adapter.usual_num_frames(config),
    )


def _table(record: Json) -> str:
    full, pruned = record["all"], record["pruned"]
    lines = [
        f"{record['model']}, {record['frames']} frames, {record['text_tokens']} other tokens; "
        f"{record['retention_ratio']:.4g} of the visual tokens enter the LLM",
        f"{'':<26}{'all tokens':>14}{'pruned':>14}{'share':>9}",
    ]
    if record["layer"] is not None:
        lines[0] += f", {record['layer_retention_ratio']:.4g} of those stay from layer {record['layer']} on"
    for label, key, unit, digits in (
        ("visual tokens", "visual_tokens", 1, 0),
        ("newline tokens", "newline_tokens", 1, 0),
        ("prompt tokens", "prompt_tokens", 1, 0),
        ("tokens in the last layer", "last_layer_tokens", 1, 0),
        ("prefill TFLOPs", "prefill_flops", 1e12, 3),
        ("KV cache MiB (16 bit)", "kv_cache_bytes", 2**20, 1),
    ):
        a, b = full[key], pruned[key]
        share = f"{100 * b / a:>8.1f}%" if a else ""
        lines.append(f"{label:<26}{a / unit:>14.{digits}f}{b / unit:>14.{digits}f}{share}")
    lines.append(f"{'mean retention ratio':<26}{1:>14}{record['mean_retention_ratio']:>14.4f}")
    if record["counted"] is not None:
        lines.append(f"counted: {record['counted']}")
    return "\n".join(lines)
