"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import tango
from tango.errors import TangoError
from tango.evaluation import MethodConfig
from tango.files import configs_folder
from tango.methods.plan import named_value
from tango.models import default_num_frames

_MOST_FRAMES = 100_000


def add_model_arguments(
    parser: argparse.ArgumentParser, *, default: str | None = None, saliency: str | None = None
) -> None:
    """Which model, where, and how its saliency is computed. Without a default the model must be named.

    `saliency` is that of all methods where none is named; None: each method's own.
    """
    known = "hub id or local folder of a checkpoint, or tango-mini" + (f" ({default})" if default else "")
    parser.add_argument("--model", required=default is None, default=default, help=known)
    parser.add_argument("--siglip", help="hub id or folder of the SigLIP that has the pooling head (see README)")
    usual = "each method's own" if saliency is None else f"{saliency} for all methods"
    parser.add_argument(
        "--saliency", metavar="NAME", default=saliency, help=f"source of saliency: p-attn, attn ({usual})"
    )
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16 or bfloat16 (auto)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (CUDA if there is one)")
    parser.add_argument("--attn-implementation", help="sdpa, flash_attention_2, eager (the model's default)")
    parser.add_argument("--offline", action="store_true", help="use local files only, never the hub")


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Which frames of which video."""
    parser.add_argument("video", help="video file")
    parser.add_argument("--num-frames", type=frame_count, help="frames to sample (the model's usual number)")
    parser.add_argument("--video-backend", default="auto", help="auto, pyav, torchcodec or decord (auto)")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Which method with which options: dataclass defaults, then a file, then flags."""
    parser.add_argument("--method", help="pruning method, see `tango methods`; none: all tokens (tango)")
    parser.add_argument("--retention-ratio", metavar="X", help="fraction of visual tokens kept, in (0, 1] (0.1)")
    parser.add_argument("--layer-pruner", help="prune again inside the LLM, e.g. fastv-merge (no)")
    parser.add_argument(
        "--mean-retention-ratio", metavar="X", help="in place of --retention-ratio: mean over the LLM's layers"
    )
    parser.add_argument(
        "--positions", metavar="NAME",
        help="of the pruned prompt; LLaVA: contiguous or kept (contiguous); Qwen-VL: correct or stock (correct)",
    )  # fmt: skip
    parser.add_argument("--config", help="YAML file with `method:` and its options, or a name in configs/methods")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="any other option of the method; repeatable"
    )


def method_from(args: argparse.Namespace) -> MethodConfig:
    """The method that the arguments describe, checked before minutes of loading: flags, then `--option`, then the file.

    Raises:
        TangoError: the file cannot be read, an option is not NAME=VALUE, or the method cannot have it;
        UnknownNameError: unknown names.
    """
    file = read_options(_config_file(args.config)) if args.config else {}
    configured = file.get("method")
    if configured is not None and args.method not in (None, configured):
        raise TangoError(f"{args.config} is for the method {configured}, but --method says {args.method}")
    names = ("method", "retention_ratio", "layer_pruner", "mean_retention_ratio", "saliency", "positions")
    flags = {name: value for name in names if (value := getattr(args, name)) is not None}
    options = dict(named_value(item) for item in args.option)
    return MethodConfig.from_settings(flags, options, file, method="tango", release=False)


def _config_file(name: str) -> Path:
    """A file, or one of Tango's own by its bare name."""
    own = configs_folder() / "methods" / f"{name}.yaml"
    return own if Path(name).name == name and not Path(name).exists() and own.is_file() else Path(name)


class _TextLoader(yaml.SafeLoader):
    """Leaves scalars as the text that they are: what they mean depends on the option."""


# But for merging mappings, and for nothing at all behind a name, which is null.
_TextLoader.yaml_implicit_resolvers = {first: yaml.SafeLoader.yaml_implicit_resolvers[first] for first in ("<", "")}


def read_options(file: Path) -> dict[str, Any]:
    """A YAML file of `name: value` lines, with values as text.

    Raises:
        TangoError: it cannot be read, or holds something else.
    """
    with parsing(file):
        options = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextLoader) or {}
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        got = "names that are no text" if isinstance(options, dict) else type(options).__name__
        raise TangoError(f"{file} must hold `name: value` lines, got {got}")
    return options


@contextmanager
def parsing(what: object) -> Iterator[None]:
    """One line for whatever is wrong with a file, or a text, of YAML or JSON.

    Raises:
        TangoError: it cannot be read, decoded or parsed, or is nested too deeply.
    """
    try:
        yield
    except RecursionError as error:
        raise TangoError(f"cannot read {what}: it is nested too deeply") from error
    except Exception as error:  # whatever PyYAML makes of odd tags
        raise TangoError(f"cannot read {what}: {' '.join(str(error).split())}") from error


def frame_count(text: str) -> int:
    """Argument type: a number of frames; `tango.read_video` refuses those below 1."""
    count = int(text)
    if count > _MOST_FRAMES:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_FRAMES} frames")
    return count


def words(text: str) -> str:
    """Argument type: what a model is to read."""
    if text != text.encode(errors="replace").decode():
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, got {text!r}")
    return text


def num_frames_from(args: argparse.Namespace) -> int:
    """`--num-frames`, or the usual number of the model."""
    if args.num_frames is not None:
        return args.num_frames
    return default_num_frames(args.model, local_files_only=args.offline)


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load what `add_model_arguments` describes."""
    quiet()
    if str(args.device).startswith("meta"):
        raise TangoError("the device meta computes nothing; expected cpu, cuda, cuda:1 ...")
    return tango.load(
        args.model,
        dtype=args.dtype,
        device=args.device,
        attn_implementation=args.attn_implementation,
        siglip=args.siglip,
        local_files_only=args.offline,
    )


def quiet() -> None:
    """Keep transformers' notes and progress bars off the user's terminal, unless they are errors."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
