"""`tango models`, and the README's table, held against what the adapters do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tango.cli import main
from tango.commands.models import describe, markdown_table
from tango.errors import OptionError
from tango.models import adapter_class, supported_model_types
from tests.families import all_families

FAMILIES = all_families()


def test_the_readme_has_the_table() -> None:
    assert markdown_table().strip() in (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_json_and_text_name_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    families = json.loads(capsys.readouterr().out)
    assert [family["name"] for family in families] == supported_model_types()
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for family in families:
        assert f"{family['name']} " in text
        assert all(name in text for name in (family["title"], family["model_class"], *family["checkpoints"]))
        assert family["tokens"]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_said_of_a_family_is_so(name: str) -> None:
    """Layer pruning is what the common test of families finds; every rule for positions is taken, and no other."""
    said, family = describe(name), FAMILIES[name]
    assert said["layer_pruning"] == family.layer_pruners
    adapter, model = adapter_class(name), family.model()
    assert type(model).__name__ == said["model_class"]
    for rule in said["positions"]:
        adapter(model, positions=rule)
    for rule in {"contiguous", "kept", "correct", "stock", "other"} - {*said["positions"]} - {"kept"}:
        with pytest.raises((OptionError, TypeError)):
            adapter(model, positions=rule)
