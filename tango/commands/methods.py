"""`tango methods`: what there is to choose from."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from tango.containers import Signal
from tango.methods import available_pruners, pruner_class


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `tango methods`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with every option and its default")
    form.add_argument("--markdown", action="store_true", help="print the README's table")


def describe(name: str) -> dict[str, Any]:
    """Everything that the registry knows about a method."""
    cls = pruner_class(name)
    paper = cls.paper
    return {
        "name": name,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "stage": "before the LLM",
        "needs": [signal.name.lower() for signal in Signal if signal in cls.needs and signal.name],
        "budget": cls.budget_rule,
        "paper": dataclasses.asdict(paper),
        "options": {f.name: f.default for f in dataclasses.fields(cls)},
    }


def markdown_table() -> str:
    """The table of methods in the README."""
    lines = ["| method | what it does | needs | tokens kept | source |", "|---|---|---|---|---|"]
    for name in available_pruners():
        method = describe(name)
        paper = method["paper"]
        source = f"[{paper['title']}]({paper['url']})" if paper["url"] else paper["title"]
        needs = ", ".join(method["needs"]) or "nothing"
        lines.append(f"| `{name}` | {method['summary']} | {needs} | {method['budget']} | {source} |")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Print the methods."""
    methods = [describe(name) for name in available_pruners()]
    if args.json:
        print(json.dumps(methods, indent=2))
    elif args.markdown:
        print(markdown_table())
    else:
        for method in methods:
            needs = ", ".join(method["needs"]) or "nothing"
            print(f"{method['name']:<16}{method['summary']}")
            print(f"{'':<16}needs {needs}; keeps {method['budget']}")
            options = ", ".join(f"{k}={v!r}" for k, v in method["options"].items())
            print(f"{'':<16}options: {options}")
    return 0
