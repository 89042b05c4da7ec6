"""What the benchmarks share: options, synthetic tokens, timing, the environment of a run, and its report."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

import tango
from tango.containers import VisualTokens
from tango.errors import TangoError
from tango.evaluation.records import cpu_name
from tango.lab.bench.synthetic import KINDS, synthetic_tokens

Record: TypeAlias = dict[str, Any]  # a report, or a row of one, as it is written to a JSON file
_DTYPES = ("float32", "bfloat16", "float16")


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options about the tokens, the machine and the number of runs."""
    add = parser.add_argument
    add("--grid", type=_grid, default=(14, 14), metavar="HxW", help="tokens per frame (default 14x14)")
    add("--dim", type=positive, default=3584, help="channels per token (default %(default)s)")
    add("--retention-ratio", type=float, default=0.1, help="fraction kept (default %(default)s)")
    add(
        "--data",
        choices=KINDS,
        default="video",
        help="scenes, independent features or one long take (default %(default)s)",
    )
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=_DTYPES, default="float32")
    add("--threads", type=thread_count, default=1, help="threads of torch on the CPU (default %(default)s)")
    add("--repeats", type=positive, default=5, help="runs of which the median is taken (default %(default)s)")
    add("--output", type=Path, metavar="FILE.json", help="also write everything as JSON")


def positive(text: str) -> int:
    """Argument type: a whole number from 1 to 10**9; a larger one is taken for a typing error."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text[:50]!r}")
    return int(text)


def thread_count(text: str) -> int:
    """Argument type: a number of threads, at most 1024: OpenMP ends the process if it cannot start them."""
    count = positive(text)
    if count > 1024:
        raise argparse.ArgumentTypeError(f"expected at most 1024 threads, got {count}")
    return count


def _grid(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"expected HxW, for example 14x14, got {text!r}")
    return positive(sides[0]), positive(sides[1])


def device_from(args: argparse.Namespace) -> torch.device:
    """The device to measure on.

    Raises:
        TangoError: there is no such device, or `--output` is a folder.
    """
    if args.output and args.output.is_dir():
        raise TangoError(f"--output needs a file, {args.output} is a folder")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise TangoError("no CUDA device is available; use --device cpu")
    return torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")


def tokens_from(args: argparse.Namespace, num_frames: int, device: torch.device) -> VisualTokens:
    """The synthetic tokens that the arguments describe."""
    dtype = getattr(torch, args.dtype)
    return synthetic_tokens(args.data, num_frames, args.grid, args.dim, seed=args.seed, dtype=dtype, device=device)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def time_ms(function: Callable[[], object], device: torch.device) -> float:
    """Milliseconds from the start of one call until the device has finished its work."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work; on a CPU there is nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_report(
    benchmark: str, args: argparse.Namespace, device: torch.device, config: Mapping[str, object], rows: list[Record]
) -> Record:
    """The record of a benchmark, as it is written to a file; call it inside `threads`, whose number it notes."""
    shared = {key: getattr(args, key) for key in ("dim", "data", "seed", "dtype", "threads", "repeats")}
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "config": {**shared, "grid": list(args.grid), "device": device.type, **config},
        "versions": _versions(device),
        "rows": rows,
    }


def describe_setting(report: Record, subject: str, num_frames: str) -> str:
    """The line above a table: what was measured, on which tokens and which machine."""
    config, device = report["config"], report["versions"]["device_name"]
    shape = "x".join(map(str, config["grid"]))
    tokens = f"{config['data']} data, {num_frames} x {shape} x {config['dim']} {config['dtype']}"
    return f"{subject}, {tokens}, {device}; medians of {config['repeats']} in ms"


def number(value: float | None, digits: int = 1) -> str:
    """A number for a table; "-" if it was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def _versions(device: torch.device) -> dict[str, str | int]:
    return {
        "tango": tango.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
    }
