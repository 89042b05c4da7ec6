"""`tango models`: lists the model families."""

from __future__ import annotations

import argparse
import dataclasses
import json

from tango.models import adapter_class, supported_model_types
from tango.report.results import Json
from tango.report.text import markdown

_P_ATTN = {"head": "SigLIP's pooling head", "cls": "CLS token", "mean": "mean query"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango models`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the README's table")


def describe(name: str) -> Json:
    """Everything that an adapter says of its family."""
    cls = adapter_class(name)
    return {
        "name": name,
        "title": cls.title,
        "model_class": cls.model_class,
        **dataclasses.asdict(cls.about),
        "num_frames": cls.default_num_frames,
        "signals": [kind.name for kind in cls.signals.kinds],
        "p_attn": _P_ATTN[cls.pooling_query],
        "positions": list(cls.position_rules),
        "prunes_images": cls.prunes_images,
    }


def markdown_table() -> str:
    """The README's table of model families."""
    rows = [
        (
            "family", "name", "checkpoints", "frames", "tokens a frame", "`p-attn` is of", "layer pruning",
            "positions", "tested on", "notes",
        )
    ]  # fmt: skip
    for family in map(describe, supported_model_types()):
        rows.append(
            (
                family["title"], f"`{family['name']}`", ", ".join(f"`{x}`" for x in family["checkpoints"]) or "-",
                str(family["num_frames"]), family["tokens"], family["p_attn"],
                "yes" if family["layer_pruning"] else "refused", ", ".join(family["positions"]),
                family["tested"] or "random weights", family["notes"],
            )
        )  # fmt: skip
    return markdown(rows)


def run(args: argparse.Namespace) -> int:
    """Print the families."""
    families = [describe(name) for name in supported_model_types()]
    if args.json:
        print(json.dumps(families, indent=2))
    elif args.markdown:
        print(markdown_table())
    else:
        for family in families:
            print(f"{family['name']:<22} {family['title']}: {', '.join(family['checkpoints']) or 'none published'}")
            indent = " " * 23
            print(f"{indent}{family['num_frames']} frames; tokens of a frame: {family['tokens'] or 'any number'}")
            print(f"{indent}signals: {', '.join(family['signals'])}; p-attn is that of the {family['p_attn']}")
            pruning = "works" if family["layer_pruning"] else "is refused"
            images = "can be pruned, too" if family["prunes_images"] else "are kept"
            print(f"{indent}positions: {', '.join(family['positions'])}; layer pruning {pruning}; images {images}")
            print(f"{indent}tested on {family['tested'] or 'random weights'} with {family['model_class']}")
            if family["notes"]:
                print(f"{indent}{family['notes']}")
    return 0
