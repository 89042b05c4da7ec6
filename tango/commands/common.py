"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import tango
from tango.errors import TangoError
from tango.evaluation import MethodConfig
from tango.files import configs_folder
from tango.methods.plan import named_value
from tango.models import default_num_frames

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tango.models.processors.protocol import ChatProtocol

_MOST_FRAMES = 100_000


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    default: str | None = None,
    positional: bool = False,
    saliency: str | None = None,
) -> None:
    """Add the options that say which model, where it runs, and how saliency is computed.

    Args:
        default: the model, if the user names none; None: the user must name one.
        positional: name the model without `--model`.
        saliency: the source of saliency for all methods, if the user names none; None: each method's own.
    """
    known = "hub id or local folder of a checkpoint, or tango-mini" + (f" ({default})" if default else "")
    if positional:
        parser.add_argument("model", metavar="MODEL", help=known)
    else:
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
    """Add the options that say which frames of which video."""
    parser.add_argument("video", help="video file")
    parser.add_argument("--num-frames", type=frame_count, help="frames to sample (the model's usual number)")
    parser.add_argument("--video-backend", default="auto", help="auto, pyav, torchcodec or decord (auto)")


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which method, with which options: flags win over a file, and a file over defaults."""
    parser.add_argument("--method", help="pruning method, see `tango methods`; none: all tokens (tango)")
    parser.add_argument("--retention-ratio", metavar="X", help="fraction of visual tokens kept, in (0, 1] (0.1)")
    parser.add_argument("--layer-pruner", help="intra-LLM method that prunes again, e.g. fastv-merge (none)")
    parser.add_argument(
        "--mean-retention-ratio", metavar="X", help="in place of --retention-ratio: mean over the LLM's layers"
    )
    parser.add_argument(
        "--positions", metavar="NAME",
        help="of the pruned prompt; LLaVA: contiguous or kept (contiguous, fastvid: kept); Qwen-VL: correct or stock",
    )  # fmt: skip
    parser.add_argument("--preset", metavar="NAME", help="its authors' settings for a model, see `tango methods`")
    parser.add_argument("--config", help="YAML file with `method:` and its options, or a name in configs/methods")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of the method, or reuse, keep_newlines, images=on; repeatable",
    )


def add_decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option that says which cache the model decodes with."""
    parser.add_argument(
        "--static-cache",
        action="store_true",
        help="decode with a cache of fixed length, for which transformers compiles the step on a GPU: the first answer "
        "waits for that (31 s for 7B on a H200), each later token takes less than half the time",
    )


def method_from(args: argparse.Namespace) -> MethodConfig:
    """The method that the arguments describe, checked before minutes of loading.

    Flags win over `--option`, both win over the preset, and that over the file.

    Raises:
        TangoError: the file cannot be read, an option is not NAME=VALUE, or the method does not take it.
        UnknownNameError: no such method or option.
    """
    file = read_options(_config_file(args.config)) if args.config else {}
    configured = file.get("method")
    if configured is not None and args.method not in (None, configured):
        raise TangoError(f"{args.config} is for the method {configured}, but --method says {args.method}")
    names = ("method", "retention_ratio", "layer_pruner", "mean_retention_ratio", "saliency", "positions")
    flags = {name: value for name in names if (value := getattr(args, name)) is not None}
    options: dict[str, object] = dict(named_value(item) for item in args.option)
    if args.preset is not None:
        options["preset"] = args.preset
    return MethodConfig.from_settings(flags, options, file, method="tango", release=False)


def _config_file(name: str) -> Path:
    """The file of this path or, for a bare name, Tango's own."""
    own = configs_folder() / "methods" / f"{name}.yaml"
    return own if Path(name).name == name and not Path(name).exists() and own.is_file() else Path(name)


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as text: what they mean depends on the option."""


# Exceptions: `<<`, which merges mappings, and a name without a value, which is null.
_TextLoader.yaml_implicit_resolvers = {first: yaml.SafeLoader.yaml_implicit_resolvers[first] for first in ("<", "")}


def read_options(file: Path) -> dict[str, object]:
    """Read a YAML file of `name: value` lines, with values as text.

    Raises:
        TangoError: the file cannot be read, or holds something else.
    """
    with parsing(file):
        options = yaml.load(file.read_text(encoding="utf-8"), Loader=_TextLoader) or {}
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        got = "names that are no text" if isinstance(options, dict) else type(options).__name__
        raise TangoError(f"{file} must hold `name: value` lines, got {got}")
    return options


@contextmanager
def parsing(what: object) -> Iterator[None]:
    """Turn whatever is wrong with YAML or JSON, in a file or a text, into an error of one line.

    Raises:
        TangoError: `what` cannot be read, decoded or parsed, or is nested too deeply.
    """
    try:
        yield
    except RecursionError as error:
        raise TangoError(f"cannot read {what}: it is nested too deeply") from error
    except Exception as error:  # PyYAML raises all kinds of errors for odd tags
        raise TangoError(f"cannot read {what}: {' '.join(str(error).split())}") from error


def frame_count(text: str) -> int:
    """Argument type: a number of frames. `tango.read_video` refuses numbers below 1."""
    count = int(text)
    if count > _MOST_FRAMES:
        raise argparse.ArgumentTypeError(f"expected at most {_MOST_FRAMES} frames")
    return count


def words(text: str) -> str:
    """Argument type: text for a model to read."""
    if text != text.encode(errors="replace").decode():
        raise argparse.ArgumentTypeError(f"expected text in UTF-8, got {text!r}")
    return text


def num_frames_from(args: argparse.Namespace) -> int:
    """`--num-frames`, or else the usual number of the model."""
    if args.num_frames is not None:
        return args.num_frames
    return default_num_frames(args.model, local_files_only=args.offline)


def load_model(args: argparse.Namespace) -> tuple[PreTrainedModel, ChatProtocol]:
    """Load the model that the options of `add_model_arguments` describe, and its processor."""
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
    """Keep transformers' notes off the user's terminal, errors excepted, and its progress bars out of log files."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
