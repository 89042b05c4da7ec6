"""`tango methods`: what there is to choose from."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from tango.containers import Signal
from tango.methods import available_layer_pruners, available_pruners, layer_pruner_class, pruner_class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango methods`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with every option and its default")
    form.add_argument("--markdown", action="store_true", help="print the README's table")


def describe(name: str) -> dict[str, Any]:
    """Everything that the registry knows about a method."""
    before_llm = name in available_pruners()
    cls = pruner_class(name) if before_llm else layer_pruner_class(name)
    needs = pruner_class(name).needs if before_llm else Signal.NONE
    return {
        "name": name,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "stage": "before the LLM" if before_llm else "inside the LLM",
        "needs": [signal.name.lower() for signal in Signal if signal in needs and signal.name],
        "budget": cls.budget_rule,
        "paper": dataclasses.asdict(cls.paper),
        "options": {f.name: f.default for f in dataclasses.fields(cls)},
    }


def markdown_table() -> str:
    """The table of methods in the README."""
    lines = ["| method | stage | what it does | needs | tokens kept | source |", "|---|---|---|---|---|---|"]
    for name in [*available_pruners(), *available_layer_pruners()]:
        method = describe(name)
        paper = method["paper"]
        source = f"[{paper['title']}]({paper['url']})" if paper["url"] else paper["title"]
        needs = ", ".join(method["needs"]) or "nothing"
        lines.append(
            f"| `{name}` | {method['stage']} | {method['summary']} | {needs} | {method['budget']} | {source} |"
        )
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Print the methods."""
    methods = [describe(name) for name in [*available_pruners(), *available_layer_pruners()]]
    if args.json:
        print(json.dumps(methods, indent=2))
    elif args.markdown:
        print(markdown_table())
    else:
        for method in methods:
            needs = ", ".join(method["needs"]) or "nothing"
            print(f"{method['name']:<16}{method['summary']}")
            print(f"{'':<16}{method['stage']}; needs {needs}; keeps {method['budget']}")
            options = ", ".join(f"{k}={v!r}" for k, v in method["options"].items())
            print(f"{'':<16}options: {options}")
    return 0
