"""`tango convert`: writes a checkpoint in lmms-lab's layout as a normal transformers checkpoint."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from tango.commands.common import quiet
from tango.errors import TangoError
from tango.models import lmms_lab
from tango.models.base import family
from tango.models.hub import resolve_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango convert`."""
    parser.add_argument("source", metavar="SRC", help="hub id or local folder of a checkpoint in lmms-lab's layout")
    parser.add_argument("target", metavar="DST", help="folder to write; it must not exist yet, or be empty")
    parser.add_argument("--offline", action="store_true", help="use local files only, never the hub")


def run(args: argparse.Namespace) -> int:
    """Convert; DST appears only when it is complete."""
    quiet()
    try:
        target = Path(args.target).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise TangoError(f"cannot write {args.target}: {error}") from error
    _check_target(target)
    folder = resolve_folder(args.source, local_files_only=args.offline)
    if not lmms_lab.is_lmms_lab(folder):
        raise TangoError(f"{args.source} is no checkpoint in lmms-lab's layout; others need no conversion")
    print(f"reading {args.source}", flush=True)
    model, tokenizer = _read(folder)
    print(f"writing {target}", flush=True)
    try:
        with _complete_or_absent(target) as partial:
            model.save_pretrained(partial, save_original_format=False)
            tokenizer.save_pretrained(partial)
            if (folder / "siglip").is_dir():
                shutil.copytree(folder / "siglip", partial / "siglip")
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise TangoError(f"cannot convert {args.source}: {reason}; {target} was not written") from error
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"done: {family(model.config)}, {count / 1e6:.1f} million parameters in {dtype}, {size / 2**20:.1f} MiB")
    return 0


def _read(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = lmms_lab.read_config(folder)
    tokenizer = lmms_lab.load_tokenizer(folder, config)
    return lmms_lab.load_model(folder, config, dtype=config.dtype or "auto"), tokenizer


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise TangoError(f"{target} exists already and is not an empty folder; name another, or remove it first")


@contextmanager
def _complete_or_absent(target: Path) -> Iterator[Path]:
    """A folder beside `target`: renamed to `target` at the end, removed if anything goes wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
