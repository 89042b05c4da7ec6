"""Time all methods on the same synthetic tokens, in alternating runs in one process: `tango bench methods`."""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from tango.containers import LayerTokens, PrunedTokens, VisualTokens
from tango.files import write_json
from tango.lab.bench import layers
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
from tango.methods import LayerPruner, Pruner, available_layer_pruners, build_pruner, ready_pruners
from tango.report.text import align, markdown


class Candidate(NamedTuple):
    """Something to time: `call` runs it once on prepared inputs; `describe` takes its result and says how many tokens
    are left and whether any of them was merged."""

    name: str
    stage: str
    call: Callable[[], object]
    describe: Callable[[Any], tuple[int, bool]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.add_argument("--frames", type=positive, default=32, help="video length (default %(default)s)")
    add_shared_arguments(parser)
    parser.add_argument("--exact-budget", action="store_true", help="let every method keep exactly that fraction")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write its JSON."""
    device = device_from(args)
    shared = {"retention_ratio": args.retention_ratio, "exact_budget": args.exact_budget}
    pruners = [build_pruner(name, **shared) for name in ready_pruners()]
    inside = [layers.build(name, args.retention_ratio) for name in available_layer_pruners()]
    with threads(args.threads):
        rows = measure(list(candidates(tokens_from(args, args.frames, device), pruners, inside)), args.repeats, device)
        built: list[Pruner | LayerPruner] = [*pruners, *inside]
        options = {pruner.name: pruner.config() for pruner in built}
        config = {"frames": args.frames, **shared, "options": options}
        report = make_report("methods", args, device, config, rows)
    print(format_markdown(report) if args.markdown else format_report(report))
    if args.output:
        write_json(args.output, report)
    return 0


def candidates(
    tokens: VisualTokens, pruners: Sequence[Pruner], inside: Sequence[LayerPruner] = ()
) -> Iterator[Candidate]:
    """Everything that is timed. Intra-LLM methods work on the same tokens, as hidden states in a prompt of the usual
    length; what the decoder computes for them (queries, keys) is not counted."""
    for pruner in pruners:
        call = functools.partial(pruner, tokens)
        yield Candidate(pruner.name, "pre-LLM", call, lambda pruned: (len(pruned.indices), merges(pruned)))
    if not inside:
        return
    prompt = layers.synthetic_prompt(tokens)
    for layer_pruner in inside:
        run_through = functools.partial(layers.run_through, layer_pruner, prompt)
        yield Candidate(layer_pruner.name, "intra-LLM", run_through, functools.partial(_left, prompt))


def _left(before: LayerTokens, after: LayerTokens) -> tuple[int, bool]:
    return len(after.visual), layers.merges(before, after)


@torch.inference_mode()
def measure(timed: Sequence[Candidate], repeats: int, device: torch.device) -> list[Record]:
    """Time all candidates, in rounds of one run of each, so that a busy machine slows all alike; one row for each."""
    found = [candidate.describe(candidate.call()) for candidate in timed]  # also the warm-up
    times: list[list[float]] = [[] for _ in timed]
    with tqdm(total=repeats * len(timed), desc="bench methods", unit="run", file=sys.stderr) as progress:
        for _ in range(repeats):
            for candidate, own in zip(timed, times, strict=True):
                progress.set_postfix_str(candidate.name)
                own.append(time_ms(candidate.call, device))
                progress.update()
    merging = [
        own
        for candidate, own, (_, merged) in zip(timed, times, found, strict=True)
        if merged and candidate.stage == "pre-LLM"
    ]
    yardstick = min(merging, key=statistics.median, default=None)
    rows = []
    for candidate, own, (kept, merged) in zip(timed, times, found, strict=True):
        ratios = [] if yardstick is None else [mine / fastest for mine, fastest in zip(own, yardstick, strict=True)]
        rows.append(
            {
                "method": candidate.name,
                "stage": candidate.stage,
                "kept_tokens": kept,
                "merges": merged,
                "total_ms": statistics.median(own),
                "total_min_ms": min(own),
                "total_max_ms": max(own),
                "ratio": statistics.median(ratios) if ratios else None,
                "ratio_min": min(ratios, default=None),
                "ratio_max": max(ratios, default=None),
            }
        )
    return rows


def merges(pruned: PrunedTokens) -> bool:
    """Whether other tokens were merged into any kept one, by the assignment that the method returned."""
    return pruned.assignment is not None and int((pruned.assignment >= 0).sum()) > len(pruned.indices)


_HEADER = ("method", "stage", "merges", "kept", "ms", "min-max", "ratio", "min-max")


def _cells(row: Record) -> list[str]:
    return [
        row["method"],
        row["stage"],
        "yes" if row["merges"] else "no",
        str(row["kept_tokens"]),
        number(row["total_ms"]),
        f"{number(row['total_min_ms'])}-{number(row['total_max_ms'])}",
        number(row["ratio"], 2),
        f"{number(row['ratio_min'], 2)}-{number(row['ratio_max'], 2)}",
    ]


def _title(report: Record) -> str:
    config = report["config"]
    setting = describe_setting(report, f"{100 * config['retention_ratio']:g} % kept", str(config["frames"]))
    return f"{setting}; ratio: to the fastest pre-LLM method that merges, run by run"


def format_report(report: Record) -> str:
    """The rows as a table."""
    table = align([_HEADER, *map(_cells, report["rows"])], num_left=3)
    return f"{_title(report)}\n{table}"


def format_markdown(report: Record) -> str:
    """The rows as a table in Markdown."""
    return f"{_title(report)}\n\n{markdown([_HEADER, *map(_cells, report['rows'])])}"
