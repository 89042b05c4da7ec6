"""`tango methods`: lists the pruning methods."""

from __future__ import annotations

import argparse
import dataclasses
import json

from tango.containers import Signal
from tango.methods import available_layer_pruners, available_pruners, available_tower_mergers
from tango.methods.base import Pruner, TowerMerger
from tango.methods.registry import any_class
from tango.models import adapter_class, families_that_merge, families_with, supported_model_types
from tango.report.results import Json
from tango.report.text import markdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango methods`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with every option and its default")
    form.add_argument("--markdown", action="store_true", help="print the README's table")


def describe(name: str) -> Json:
    """Everything that is known about a method. `models` are the families whose adapters supply its signals, or whose
    towers can merge frames."""
    cls = any_class(name)
    needs = cls.needs if issubclass(cls, Pruner) else Signal.NONE
    in_tower = issubclass(cls, TowerMerger)
    return {
        "name": name,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "stage": "tower" if in_tower else "pre-LLM" if issubclass(cls, Pruner) else "intra-LLM",
        "needs": [kind.name for kind in needs.kinds],
        "models": families_that_merge() if in_tower else families_with(needs),
        "budget": cls.budget_rule,
        "paper": dataclasses.asdict(cls.paper),
        "options": {f.name: f.default for f in dataclasses.fields(cls)},
        "saliency": cls.default_saliency if issubclass(cls, Pruner) and Signal.SALIENCY in needs else None,
        "positions": cls.default_positions if issubclass(cls, Pruner) else None,
        "presets": {family: dict(settings) for family, settings in cls.presets.items()},
    }


def markdown_table() -> str:
    """The README's table of methods."""
    header = ("method", "stage", "what it does", "needs", "models", "tokens kept", "source", "reference licence")
    rows = [header]
    for method in _methods():
        paper = method["paper"]
        source = f"[{paper['title']}]({paper['url']}), {paper['venue']}" if paper["url"] else paper["title"]
        cells = (
            f"`{method['name']}`", method["stage"], method["summary"], _needs(method), _models(method),
            method["budget"], source, paper["licence"] or "-",
        )  # fmt: skip
        rows.append(cells)
    return markdown(rows)


def run(args: argparse.Namespace) -> int:
    """Print the methods."""
    if args.json:
        print(json.dumps(_methods(), indent=2))
    elif args.markdown:
        print(markdown_table())
    else:
        for method in _methods():
            paper = method["paper"]
            source = f"{paper['title']}, {paper['venue']}, {paper['url']}" if paper["url"] else paper["title"]
            options = ", ".join(f"{k}={v!r}" for k, v in method["options"].items())
            print(f"{method['name']:<15} {method['summary']}")
            print(f"{'':<16}{method['stage']}; needs {_needs(method)}; keeps {method['budget']}")
            print(f"{'':<16}models: {_models(method)}")
            print(f"{'':<16}source: {source}")
            if paper["licence"]:
                print(f"{'':<16}licence of the reference implementation: {paper['licence']}")
            print(f"{'':<16}options: {options}")
            for what in ("saliency", "positions"):
                if method[what] is not None:
                    print(f"{'':<16}{what}: {method[what]}")
            for family, settings in method["presets"].items():
                given = ", ".join(f"{k}={v!r}" for k, v in settings.items())
                print(f"{'':<16}preset {family}: {given or 'the defaults'}")
    return 0


def _methods() -> list[Json]:
    return [describe(name) for name in [*available_pruners(), *available_layer_pruners(), *available_tower_mergers()]]


def _needs(method: Json) -> str:
    return ", ".join(method["needs"]) or "nothing"


def _models(method: Json) -> str:
    if method["models"] == supported_model_types():
        return "all"
    return ", ".join(adapter_class(name).title for name in method["models"]) or "none"
