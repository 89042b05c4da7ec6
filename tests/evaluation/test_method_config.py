"""`MethodConfig`: which method with which options, from code and from loose settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

import tango
from tango.errors import BudgetError, OptionError, UnknownNameError
from tango.evaluation import MethodConfig
from tango.methods import build_layer_pruner
from tests import tiny

TANGO = {"method": "tango"}
FASTV = {"method": "fastv"}


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ({}, "none"),
        ({"method": "tango"}, "tango-r0.1"),
        ({"method": "tango", "options": {"retention_ratio": 0.15}}, "tango-r0.15"),
        ({**TANGO, "options": {"alpha": 2, "rope_sections": [2, 4, 2]}}, "tango-r0.1-alpha2-rope_sections_2_4_2"),
        ({"method": "tango", "layer_pruner": "fastv-merge", "mean_retention_ratio": 0.1}, "tango-m0.1-fastv-merge18"),
        (
            {"method": "uniform", "layer_pruner": "fastv-merge", "layer_options": {"layer": 3, "retention_ratio": 0.2}},
            "uniform-r0.1-fastv-merge3-retention_ratio0.2",
        ),
        ({"method": "fastv-merge", "options": {"retention_ratio": 0.3, "layer": 2}}, "fastv-merge-r0.3-layer2"),
        ({"method": "tango", "saliency": "attn"}, "tango-r0.1-attn"),
        ({"method": "tango", "positions": "kept"}, "tango-r0.1-kept"),
    ],
)  # fmt: skip
def test_labels_are_names_for_folders(arguments, label):
    assert MethodConfig(**arguments).label == label


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "tnago"}, UnknownNameError, "unknown method 'tnago'. Did you mean 'tango'.*none.*uniform"),
        ({**TANGO, "options": {"alhpa": 2}}, UnknownNameError, "option of tango 'alhpa'.*alpha"),
        ({**TANGO, "options": {"alpha": "2"}}, OptionError, "alpha must be a number, got '2'"),
        ({**TANGO, "options": {"retention_ratio": 10}}, BudgetError, "must lie in"),
        ({**TANGO, "mean_retention_ratio": 2}, BudgetError, "must lie in"),
        ({**TANGO, "mean_retention_ratio": 0.1, "options": {"retention_ratio": 0.1}}, BudgetError, "not both"),
        ({**TANGO, "layer_pruner": "fastw"}, UnknownNameError, "layer pruner 'fastw'.*fastv-merge"),
        ({**TANGO, "layer_pruner": "fastv-merge", "layer_options": {"layer": 0}}, BudgetError, "layer must be"),
        ({**TANGO, "layer_options": {"layer": 2}}, OptionError, "no layer_pruner: layer"),
        ({**TANGO, "saliency": "max"}, UnknownNameError, "unknown saliency .max.*attn, p-attn"),
        ({**TANGO, "positions": "new"}, OptionError, "'contiguous' or 'kept' or .*, got 'new'"),
        ({"options": {"retention_ratio": 0.1}}, OptionError, "keeps all tokens"),
        ({"positions": "kept"}, OptionError, "keeps all tokens"),
        ({"layer_pruner": "fastv-merge"}, OptionError, "keeps all tokens"),
        ({**FASTV, "mean_retention_ratio": 0.1, "options": {"retention_ratio": 0.1}}, BudgetError, "not both"),
        ({**FASTV, "mean_retention_ratio": 2}, BudgetError, "must lie in"),
        ({**FASTV, "layer_pruner": "fastv-merge"}, OptionError, "prunes inside the LLM already"),
    ],
)
def test_mistakes_show_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        MethodConfig(**arguments)


def test_the_dictionary_is_complete_plain_and_enough_to_rebuild_it():
    config = MethodConfig(method="tango", options={"alpha": 2.0}, layer_pruner="fastv-merge")
    plain = json.loads(json.dumps(config.to_dict()))
    assert plain["options"]["context_ratio"] == 0.4
    assert plain["layer_options"]["layer"] == 18
    assert MethodConfig(**plain).to_dict() == config.to_dict()


def test_changing_the_callers_options_changes_nothing():
    options = {"retention_ratio": 0.2}
    config = MethodConfig(method="uniform", options=options)
    options["retention_ratio"] = 0.9
    assert config.label == "uniform-r0.2"


class TestApply:
    def test_switches_the_pruning_on_and_off(self):
        model = tiny.llava_onevision()
        inside = {"layer_pruner": "fastv-merge", "layer_options": {"layer": 2, "retention_ratio": 0.25}}
        config = MethodConfig(method="tango", mean_retention_ratio=0.25, saliency="attn", **inside)
        with config.apply(model) as pruning:
            assert pruning.pruner == tango.build_pruner("tango", retention_ratio=0.4, segment_threshold=0.8)
            assert pruning.layer_pruner == build_layer_pruner("fastv-merge", layer=2, retention_ratio=0.25)
            assert pruning.adapter.saliency == "attn"
        assert "generate" not in vars(model)

    def test_a_method_inside_the_llm(self):
        model = tiny.llava_onevision()
        config = MethodConfig(method="dart", options={"retention_ratio": 0.5, "layer": 1})
        assert config.label == "dart-r0.5-layer1"
        assert config.to_dict()["options"] == {**build_layer_pruner("dart", layer=1).config(), "retention_ratio": 0.5}
        with config.apply(model) as pruning:
            assert pruning.layer_pruner == build_layer_pruner("dart", layer=1).for_mean(0.5, 4)
        assert MethodConfig(method="fastv").to_dict()["options"]["retention_ratio"] == 0.1

    def test_none_leaves_the_model_alone(self):
        model = tiny.llava_onevision()
        with MethodConfig().apply(model) as pruning:
            assert pruning is None
            assert "generate" not in vars(model)


class TestSettings:
    @pytest.mark.parametrize(
        ("flag", "value", "option", "parsed"),
        [
            ("retain_ratio", "0.15", "retention_ratio", 0.15),
            ("retain-ratio", 0.15, "retention_ratio", 0.15),
            ("retention_ratio", "1.5e-1", "retention_ratio", 0.15),
            ("similarity_threshold", "0.7", "segment_threshold", 0.7),
            ("segment_threshold", "null", "segment_threshold", None),
            ("segment_threshold", "None", "segment_threshold", None),
            ("context_ratio", "0.5", "context_ratio", 0.5),
            ("alpha", "2", "alpha", 2),
            ("base_time", "1e5", "base_time", 1e5),
            ("base-space", "100", "base_space", 100),
            ("num_neighbors", "5", "num_neighbors", 5),
            ("segment_type", "fastvid", "segmentation", "fastvid"),
            ("SEGMENTATION", "fastvid", "segmentation", "fastvid"),
            ("exact_budget", "true", "exact_budget", True),
            ("exact_budget", "False", "exact_budget", False),
            ("rope_sections", "2:3:4", "rope_sections", (2, 3, 4)),
            ("rope_sections", "[2, 3, 4]", "rope_sections", (2, 3, 4)),
            ("anchor_order", "release", "anchor_order", "release"),
        ],
    )
    def test_every_name_reaches_its_option(self, flag, value, option, parsed):
        config = MethodConfig.from_settings({"method": "tango", flag: value})
        assert config.options == {option: parsed}
        assert type(config.options[option]) is type(parsed)

    def test_earlier_sources_win_whatever_name_they_use(self):
        flags = {"retain-ratio": "0.2", "segment_threshold": None}
        arguments = {"retention_ratio": 0.3, "alpha": 2, "wrapper": "uniform"}
        environ = {"wrapper": "tango", "alpha": "3", "num_neighbors": "5", "similarity_threshold": "0.7"}
        config = MethodConfig.from_settings(flags, {**arguments, "method": None, "wrapper": None}, environ)
        options = {"retention_ratio": 0.2, "alpha": 2, "num_neighbors": 5, "segment_threshold": None}
        assert config == MethodConfig(method="tango", options=options)
        assert MethodConfig.from_settings({}, arguments, {"wrapper": "tango"}).method == "uniform"

    def test_nothing_means_all_tokens(self):
        assert MethodConfig.from_settings() == MethodConfig.from_settings({"wrapper": "none"}) == MethodConfig()
        assert MethodConfig.from_settings({"wrapper": None}, {"method": "none"}) == MethodConfig()

    def test_a_pruned_layer_makes_the_ratio_a_mean(self):
        config = MethodConfig.from_settings({"wrapper": "tango", "retain_ratio": "0.15", "pruned_layer": "18"})
        expected = {"layer_pruner": "fastv-merge", "layer_options": {"layer": 18}}
        assert config == MethodConfig(method="tango", mean_retention_ratio=0.15, **expected)
        config = MethodConfig.from_settings({"wrapper": "tango", "pruned_layer": "18"})
        assert config == MethodConfig(method="tango", mean_retention_ratio=0.1, **expected)

    def test_the_ratio_before_the_llm_can_be_given(self):
        settings = {"wrapper": "tango", "retain_ratio": 0.1, "pre_retain_ratio": "0.1217", "pruned_layer": 18}
        config = MethodConfig.from_settings(settings)
        assert config.mean_retention_ratio is None
        # 0.65 is the threshold of the mean, 0.1; 0.1217 alone would mean 0.8
        assert config.options == {"retention_ratio": 0.1217, "segment_threshold": 0.65}
        settings["similarity_threshold"] = 0.7
        assert MethodConfig.from_settings(settings).options["segment_threshold"] == 0.7
        assert MethodConfig.from_settings({**settings, "wrapper": "uniform"}).options == {"retention_ratio": 0.1217}

    def test_the_layer_pruner_has_options_of_its_own(self):
        settings = {"method": "uniform", "layer_pruner": "fastv-merge", "layer_layer": "2", "saliency": "attn"}
        settings["positions"] = "kept"
        config = MethodConfig.from_settings({**settings, "layer_retention_ratio": "0.25", "mean_retention_ratio": 0.2})
        assert config.layer_options == {"layer": 2, "retention_ratio": 0.25}
        assert (config.mean_retention_ratio, config.saliency, config.positions) == (0.2, "attn", "kept")

    def test_a_layer_pruner_can_be_the_method(self):
        config = MethodConfig.from_settings(
            {"wrapper": "fastv", "retain_ratio": 0.2, "pruned_layer": 18, "layer": 1, "alpha": 2}
        )
        assert config == MethodConfig(method="fastv", options={"retention_ratio": 0.2, "layer": 1})

    def test_tuning_flags_of_the_release_pass_by_methods_without_them(self):
        tuning: dict[str, Any] = {"similarity_threshold": 0.8, "alpha": 1.5, "segment_type": "holitom"}
        assert MethodConfig.from_settings({"wrapper": "uniform", **tuning}) == MethodConfig(method="uniform")
        assert MethodConfig.from_settings(tuning) == MethodConfig()
        config = MethodConfig.from_settings({"wrapper": "fastvid", **tuning})
        assert config.options == {"segment_threshold": 0.8}  # fastvid has this one

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"wrapper": "tnago"}, UnknownNameError, "Did you mean 'tango'.*Known: .*divprune.*none"),
            ({"wrapper": "tango", "retain_ratoi": 0.1}, UnknownNameError, "Known: .*retention_ratio"),
            ({"wrapper": "uniform", "segment_threshold": 0.8}, UnknownNameError, "option of uniform"),
            ({"wrapper": "uniform", "retain_ratio": "ten"}, OptionError, "retention_ratio must be a number, got 'ten'"),
            ({"retain_ratio": 0.1}, OptionError, "keeps all tokens"),
            ({"pruned_layer": 18}, OptionError, "keeps all tokens"),
            ({"wrapper": "tango", "method": "uniform"}, OptionError, "wrapper and method are one option"),
            ({"wrapper": "tango", "pre_retain_ratio": 0.1}, OptionError, "needs pruned_layer"),
            ({"wrapper": "fastv-merge", "pre_retain_ratio": 0.1}, OptionError, "lets all tokens into the LLM"),
        ],
    )
    def test_mistakes(self, settings, error, message):
        with pytest.raises(error, match=message):
            MethodConfig.from_settings(settings)

    def test_one_option_by_two_names_may_agree(self):
        settings = {"wrapper": "uniform", "retain_ratio": "0.2", "retention_ratio": 0.2}
        assert MethodConfig.from_settings(settings).label == "uniform-r0.2"

    def test_the_environment(self):
        environ = {"WRAPPER": "tango", "TANGO_RETAIN_RATIO": "0.2", "TANGO_ALPHA": "", "HOME": "x", "TANGO": "y"}
        settings = MethodConfig.settings_from_environment(environ)
        assert settings == {"wrapper": "tango", "retain_ratio": "0.2"}
        assert MethodConfig.from_settings(settings).label == "tango-r0.2"
        assert MethodConfig.settings_from_environment({"WRAPPER": ""}) == {}
