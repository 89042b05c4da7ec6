"""`tango methods`, and what it says about models: held against what the adapters really supply."""

from __future__ import annotations

import json
from functools import cache

import pytest

from tango.cli import main
from tango.containers import ALL_SIGNALS, Signal
from tango.errors import MissingSignalError
from tango.methods import available_layer_pruners, available_pruners, available_tower_mergers, pruner_class
from tango.models import Adapter, adapter_class, families_with, supported_model_types
from tango.profiling import StageTimer
from tests import tiny_qwen
from tests.models.test_base import MODELS, inputs_of

EVERYTHING = ALL_SIGNALS & ~Signal.TIMESTAMPS


@cache
def model_and_inputs(family: str):
    return MODELS[family](), inputs_of(family)


@pytest.mark.parametrize("family", supported_model_types())
def test_families_supply_what_they_say_and_nothing_else(family):
    model, inputs = model_and_inputs(family)
    adapter = adapter_class(family)(model)
    (tokens,) = adapter.encode_videos(inputs, EVERYTHING | Signal.TIMESTAMPS, StageTimer()).videos
    for field in EVERYTHING.fields:
        assert (getattr(tokens, field) is not None) == (field in adapter.signals.fields)
    assert Signal.TIMESTAMPS in adapter.signals
    assert tokens.timestamps_s.tolist() != list(range(len(tokens.timestamps_s)))  # real time, not frame numbers


@pytest.mark.parametrize("family", supported_model_types())
@pytest.mark.parametrize("method", available_pruners())
def test_models_of_a_method_are_those_that_do_not_refuse_it(family, method):
    needs = pruner_class(method).needs
    adapter = adapter_class(family)(model_and_inputs(family)[0])
    if family in families_with(needs):
        adapter.check(needs, method)
        return
    with pytest.raises(MissingSignalError, match=f"{method} needs .*, which the {adapter.title} adapter does not"):
        adapter.check(needs, method)


def test_a_refusal_names_what_is_missing_and_who_has_it():
    adapter = adapter_class("qwen2_5_vl")(tiny_qwen.model("qwen2_5_vl"))
    expected = (
        "mine needs frame embeddings, which the Qwen2.5-VL adapter does not supply; "
        f"it works with {', '.join(families_with(EVERYTHING))}"
    )
    assert (
        {"llava_onevision", "smolvlm"} <= set(families_with(EVERYTHING)) <= {*supported_model_types()} - {"qwen2_5_vl"}
    )
    with pytest.raises(MissingSignalError) as caught:
        adapter.check(EVERYTHING, "mine")
    assert str(caught.value) == expected


def test_what_an_adapter_does_not_declare_is_refused():
    assert Adapter.signals == Signal.NONE


def test_json_names_models_paper_and_licence(capsys):
    assert main(["methods", "--json"]) == 0
    methods = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert list(methods) == [*available_pruners(), *available_layer_pruners(), *available_tower_mergers()]
    assert methods["fastv-merge"]["models"] == methods["visionzip"]["models"] == supported_model_types()
    assert methods["earlytom-frames"]["stage"] == "tower"
    assert methods["earlytom-frames"]["models"] == ["llava_onevision"]
    assert methods["divprune"]["paper"]["licence"] == "CC-BY-NC-4.0"


def test_text_and_table_name_models_paper_and_licence(capsys):
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    own = text[text.index("\nvisionzip ") :].partition("options: ")[0]
    for words in ("models: all\n", "CVPR 2025, https://", "reference implementation: Apache-2.0"):
        assert words in own
    assert main(["methods", "--markdown"]) == 0
    header, line, *rows = capsys.readouterr().out.strip().splitlines()
    assert {row.count(" | ") for row in (header, *rows)} == {7}
    assert line.count("---") == 8
    cells = next(row for row in rows if row.startswith("| `visionzip`")).strip("| ").split(" | ")
    assert (cells[4], cells[7]) == ("all", "Apache-2.0")
    assert cells[6].endswith("(https://arxiv.org/abs/2412.04467), CVPR 2025")
