"""Measure a pruner on synthetic tokens, by video length: time, stages, memory, and plain code beside it.

Behind `tango bench pruner`. The plain code is `engine="plain"`. MB are 10**6 bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

import tango
from tango.containers import PrunedTokens, VisualTokens
from tango.extensions import imported
from tango.files import write_json
from tango.lab.bench.common import (
    Record,
    add_shared_arguments,
    describe_setting,
    device_from,
    make_report,
    number,
    positive,
    threads,
    time_ms,
    tokens_from,
)
from tango.methods import Pruner, available_pruners, build_pruner
from tango.methods.tango import TangoPruner
from tango.processes import resident_bytes
from tango.report.text import align

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEvent

# The ranges that methods mark for torch's profiler, as "tango::name"; time in a nested range counts for that one alone.
STAGES: tuple[str, ...] = (
    "similarity", "segmentation", "rotation", "selection", "products", "clustering", "merging", "other",
)  # fmt: skip
_PREFIX = "tango::"
_LEAST_AGREEMENT = 0.99  # of the kept tokens; rounding may swap near-equal scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    add = parser.add_argument
    add("--frames", type=positive, nargs="+", default=[32, 64, 128, 256], metavar="T", help="video lengths to time")
    add("--method", choices=available_pruners(), default="tango", help="default %(default)s")
    add_shared_arguments(parser)
    add(
        "--reference-up-to",
        type=int,
        default=256,
        metavar="T",
        help="compare with plain code, run by run, up to this many frames (tango only; 0: never)",
    )
    add("--memory-probe", type=positive, metavar="T", help=argparse.SUPPRESS)  # in the child process


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write its JSON; returns the exit status (1: the reference disagrees)."""
    device = device_from(args)
    pruner = build_pruner(args.method, retention_ratio=args.retention_ratio)
    with threads(args.threads):
        if args.memory_probe:
            print(_probe_host(pruner, tokens_from(args, args.memory_probe, device), tokens_from(args, 2, device)))
            return 0
        config = {"method": args.method, "frames": sorted(set(args.frames)), "options": pruner.config()}
        config |= {"reference_up_to": args.reference_up_to}
        rows: list[Record] = []
        for row in _rows(args, pruner, device):
            rows.append(row)
            report = make_report("pruner", args, device, config, rows)
            if args.output:
                write_json(args.output, report)
    print(format_report(report))
    shares = [row["reference"]["common_share"] for row in report["rows"] if row["reference"]]
    if min(shares, default=1) < _LEAST_AGREEMENT:
        print(f"the reference keeps other tokens: only {min(shares):.1%} in common", file=sys.stderr)
        return 1
    return 0


def _rows(args: argparse.Namespace, pruner: Pruner, device: torch.device) -> Iterator[Record]:
    smaller: Record | None = None
    sizes = sorted(set(args.frames))
    with tqdm(total=len(sizes), desc="bench pruner", unit="size", file=sys.stderr) as progress:
        for num_frames in sizes:
            progress.set_postfix_str(f"{num_frames} frames")
            row = _row(args, pruner, num_frames, device)
            if smaller is not None:
                row["time_exponent"] = growth_exponent(smaller, row, "total_ms")
                row["memory_exponent"] = growth_exponent(smaller, row, "peak_extra_mb")
            yield row
            smaller = row
            progress.update()


def _row(args: argparse.Namespace, pruner: Pruner, num_frames: int, device: torch.device) -> Record:
    # The child process that measures memory holds tokens of its own, so it runs before there are any here.
    host_mb = _probe_in_child(args, num_frames) if device.type == "cpu" else None
    tokens = tokens_from(args, num_frames, device)
    kept = pruner(tokens)  # also the warm-up
    reference = None
    if num_frames <= args.reference_up_to and isinstance(pruner, TangoPruner):
        reference = functools.partial(dataclasses.replace(pruner, engine="plain"), tokens)
    agreement = _agreement(kept, reference().indices) if reference else {}
    total_ms, reference_ms = [], []
    for _ in range(args.repeats):
        total_ms.append(time_ms(functools.partial(pruner, tokens), device))
        if reference:
            reference_ms.append(time_ms(reference, device))
    return {
        "frames": num_frames,
        "tokens_per_frame": tokens.features.shape[1],
        "input_mb": tokens.features.numel() * tokens.features.element_size() / 1e6,
        "kept_tokens": len(kept.indices),
        "total_ms": statistics.median(total_ms),
        "total_min_ms": min(total_ms),
        "total_max_ms": max(total_ms),
        "stages_ms": _stages_ms(pruner, tokens, args.repeats, device),
        "peak_extra_mb": _probe_cuda(pruner, tokens) if device.type == "cuda" else host_mb,
        "time_exponent": None,
        "memory_exponent": None,
        "reference": _comparison(total_ms, reference_ms) | agreement if reference else None,
    }


def _agreement(kept: PrunedTokens, expected: torch.Tensor) -> Record:
    """Whether both keep the same tokens; rounding differs, so near-equal scores may be ordered either way."""
    common = int(torch.isin(kept.indices, expected).sum())
    return {
        "kept_tokens": len(expected),
        "indices_equal": torch.equal(kept.indices, expected),
        "common_share": common / max(len(expected), len(kept.indices)),
    }


def _comparison(total_ms: list[float], reference_ms: list[float]) -> Record:
    speedups = [slow / fast for slow, fast in zip(reference_ms, total_ms, strict=True)]
    return {
        "total_ms": statistics.median(reference_ms),
        "speedup": statistics.median(speedups),
        "speedup_min": min(speedups),
        "speedup_max": max(speedups),
    }


def _stages_ms(pruner: Pruner, tokens: VisualTokens, repeats: int, device: torch.device) -> dict[str, float] | None:
    """Median milliseconds by stage, on the device's own clock; None for a method that marks no stages."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    runs = []
    for _ in range(repeats):
        with profile(activities=activities) as recorded, record_function(f"{_PREFIX}other"):
            pruner(tokens)
        runs.append(_by_stage(recorded, device))
    if set(runs[0]) <= {"other"}:
        return None
    return {f"{stage}_ms": statistics.median(run.get(stage, 0.0) for run in runs) for stage in STAGES}


def _by_stage(recorded: profile, device: torch.device) -> dict[str, float]:
    """Milliseconds in every stage, without those in stages nested in it."""
    totals: dict[str, float] = {}

    def add(event: FunctionEvent, stage: str | None) -> None:
        own = event.name.removeprefix(_PREFIX) if event.name.startswith(_PREFIX) else None
        if own is not None:
            us = event.device_time_total if device.type == "cuda" else event.cpu_time_total
            totals[own] = totals.get(own, 0.0) + us / 1e3
            if stage is not None:
                totals[stage] -= us / 1e3
        for child in event.cpu_children:
            add(child, own or stage)

    for event in recorded.events() or ():
        if event.cpu_parent is None and str(event.device_type).endswith("CPU"):
            add(event, None)
    return totals


def growth_exponent(smaller: Record, larger: Record, key: str) -> float | None:
    """The b in "grows like frames ** b" between two rows; None where it is not defined."""
    if not smaller[key] or not larger[key]:
        return None
    return math.log(larger[key] / smaller[key]) / math.log(larger["frames"] / smaller["frames"])


def _probe_cuda(pruner: Pruner, tokens: VisualTokens) -> float:
    """Peak of the memory allocated during one run, beyond what was allocated before, in MB."""
    device = tokens.features.device
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    pruner(tokens)
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _probe_in_child(args: argparse.Namespace, num_frames: int) -> float | None:
    """Run `_probe_host` in a fresh process.

    glibc keeps freed memory for later, so that in this process earlier runs would leave enough behind to hide most of
    what a run needs. With the fixed threshold, every large block in the child is a mapping of its own, returned to the
    system when it is freed.
    """
    command = ["env", "MALLOC_MMAP_THRESHOLD_=131072", sys.executable, "-m", "tango.cli", "bench", "pruner"]
    command += [f"--import={name}" for name in imported()]
    command += ["--memory-probe", str(num_frames), "--device", "cpu"]
    for option in ("dim", "method", "retention_ratio", "data", "seed", "dtype", "threads"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    command += ["--grid", "x".join(map(str, args.grid))]
    root = Path(tango.__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _probe_host(pruner: Pruner, tokens: VisualTokens, warm_up: VisualTokens) -> str:
    """Peak resident size during one run beyond the size before it, in MB, as JSON; null where /proc cannot tell."""
    pruner(warm_up)  # loads code and allocates the matrix library's own buffers
    before = resident_bytes()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:
        return "null"
    pruner(tokens)
    peak = resident_bytes(peak=True)
    return json.dumps(max(0, peak - before) / 1e6 if peak and before else None)


def format_report(report: Record) -> str:
    """The rows as a table, times in ms and memory in MB."""
    header = ["frames", "kept", "total", *STAGES, "peak MB", "time exp", "mem exp", "reference", "speedup", "agree"]
    lines = [header]
    for row in report["rows"]:
        stages, reference = row["stages_ms"] or {}, row["reference"] or {}
        lines.append(
            [
                str(row["frames"]),
                str(row["kept_tokens"]),
                number(row["total_ms"]),
                *(number(stages.get(f"{stage}_ms")) for stage in STAGES),
                number(row["peak_extra_mb"]),
                number(row["time_exponent"], 2),
                number(row["memory_exponent"], 2),
                number(reference.get("total_ms")),
                number(reference.get("speedup"), 2),
                "equal" if reference.get("indices_equal") else number(reference.get("common_share"), 4),
            ]
        )
    title = describe_setting(report, report["config"]["method"], "T")
    return f"{title}\n{align(lines)}"
