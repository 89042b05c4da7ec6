"""`Plan`: one meaning of names and text, whatever door they come through, and methods that are built once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tango
from tango import methods
from tango.commands.common import add_method_arguments, add_model_arguments, method_from
from tango.errors import BudgetError, OptionError, TangoError
from tango.evaluation import MethodConfig
from tango.evaluation.config import label_of
from tango.evaluation.settings import method_from as former_method_from
from tango.methods import Plan, TangoPruner, available_methods, build_pruner, method_class
from tango.methods.base import read_option
from tango.methods.fastv_merge import FastvMergePruner
from tests import tiny

ROOT = Path(__file__).parents[1]
NULLS = ("null", "None", "~", "NULL")
TEXTS: dict[str, tuple[str, ...]] = {
    "retention_ratio": ("0.25", "1e-1", "1", ".5"),
    "exact_budget": ("true", "True", "on", "yes", "1", "off", "No", "0"),
    "segmentation": ("fastvid", "holitom"),
    "segment_threshold": ("0.7", "7e-1", *NULLS),
    "static_threshold": ("-1", *NULLS),
    "alpha": ("2", "2.0", "1.5e0"),
    "num_neighbors": ("5", "5.0", "1e1"),
    "base_time": ("1e4", "10000", "2.5E3"),
    "rope": ("none", "frames"),
    "rope_sections": ("1196:1194:1194", "2:3:4", *NULLS),
    "sinks": ("28:27", "28", "[]", *NULLS),
    "kernels": ("off", "false", "0", "on", "1"),
    "saliency": ("attn", "p-attn"),
    "positions": ("kept", "stock", *NULLS),
    "layer_pruner": ("fastv-merge",),
    "layer_layer": ("3", "3.0"),
}
CHOICES = st.fixed_dictionaries({}, optional={name: st.sampled_from(texts) for name, texts in TEXTS.items()})


def at_the_shell(*flags: str) -> Plan:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, default="x")
    add_method_arguments(parser)
    return method_from(parser.parse_args(flags)).plan


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Callable[[dict[str, str]], Plan]]]:
    """What reads the settings of a run, by what it reads them from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "VLMEvalKit"))
        patch.syspath_prepend(str(ROOT / "lmms-eval"))
        from tango_lmms_eval.settings import read_settings
        from tango_vlmeval.settings import parser, resolve

        folder = tmp_path_factory.mktemp("doors")

        def as_yaml(texts: dict[str, str]) -> Plan:
            file = folder / "method.yaml"
            file.write_text("".join(f"{name}: {text}\n" for name, text in {"method": "tango", **texts}.items()))
            return at_the_shell("--config", str(file))

        def as_variables(texts: dict[str, str]) -> dict[str, str]:
            variables = {f"TANGO_{name.upper()}": text for name, text in texts.items()}
            return {"WRAPPER": "tango", **variables}

        def vlmevalkit(texts: dict[str, str], *flags: str, **environ: str) -> Plan:
            file = folder / "config.json"
            entry = {"class": "Tango", "pretrained": "p", **texts}
            file.write_text(json.dumps({"model": {"M": entry}, "data": {}}))
            run = resolve(parser().parse_args([f"--config={file}", *flags]), environ)
            return next(iter(run.models.values())).method.plan

        yield {
            "mapping": lambda texts: Plan.parse(texts, method="tango", release=True),
            "--option": lambda texts: at_the_shell(*(f"--option={n.replace('_', '-')}={t}" for n, t in texts.items())),
            "YAML": as_yaml,
            "VLMEvalKit --option": lambda texts: vlmevalkit(
                {}, "--method=tango", *(f"--option={name}={text}" for name, text in texts.items())
            ),
            "VLMEvalKit entry": lambda texts: vlmevalkit({"method": "tango", **texts}),
            "VLMEvalKit TANGO_*": lambda texts: vlmevalkit({}, **as_variables(texts)),
            "lmms-eval model_args": lambda texts: (
                read_settings({"pretrained": "p", "wrapper": "tango", **texts}, {}).method.plan
            ),
            "lmms-eval TANGO_*": lambda texts: read_settings({"pretrained": "p"}, as_variables(texts)).method.plan,
        }


class TestDoors:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(texts=CHOICES)
    def test_the_same_text_gives_equal_plans(
        self, doors: dict[str, Callable[[dict[str, str]], Plan]], texts: dict[str, str]
    ) -> None:
        if "layer_pruner" in texts:  # the toolkits, as the release, take the ratio beside it for the mean
            texts["mean_retention_ratio"] = texts.pop("retention_ratio", "0.1")
        else:
            texts.pop("layer_layer", None)
        first, *others = plans = {door: read(dict(texts)) for door, read in doors.items()}
        assert {door: plans[door] for door in others} == dict.fromkeys(others, plans[first])

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("base_time", "1e4", 10_000.0),
            ("kernels", "off", False),
            ("rope_sections", "1196:1194:1194", (1196, 1194, 1194)),
            ("rope_sections", "2:3:4", (2, 3, 4)),  # YAML 1.1 would read 7384
            ("sinks", "28,27,41", (28, 27, 41)),
            ("sinks", "28", (28,)),
            ("sinks", "[]", ()),
            ("sinks", "null", None),
            ("segment_threshold", "None", None),
            ("segment_threshold", "null", None),
            ("rope", "none", "none"),
        ],
    )
    def test_what_the_text_means(
        self, doors: dict[str, Callable[[dict[str, str]], Plan]], name: str, text: str, value: object
    ) -> None:
        assert {door: getattr(read({name: text}).pruner, name) for door, read in doors.items()} == dict.fromkeys(
            doors, value
        )

    @pytest.mark.parametrize(
        ("texts", "said"),
        [
            ({"alpha": "much"}, "alpha must be a number, got 'much'"),
            ({"kernels": "2"}, "kernels must be true or false, got '2'"),
            ({"num_neighbors": "7.5"}, "num_neighbors must be a whole number, got '7.5'"),
            ({"rope_sections": "1:2"}, "rope_sections must be 3 numbers or null (None), got '1:2'"),
            ({"sinks": "28,corner"}, "sinks must be numbers or null (None), got '28,corner'"),
            ({"segmentation": "holitem"}, "segmentation must be 'holitom' or 'fastvid', got 'holitem'"),
            ({"mean_retention_ratio": "few"}, "mean_retention_ratio must be a number or null (None), got 'few'"),
            ({"positions": "here"}, "positions must be 'contiguous' or 'kept' or 'correct' or 'stock' or null (None), "
             "got 'here'"),
            ({"retention_ratio": "0.1", "mean_retention_ratio": "0.1"},
             "give retention_ratio (pre-LLM) or mean_retention_ratio (over the LLM's layers), not both"),
        ],
    )  # fmt: skip
    def test_mistakes_are_told_in_the_same_words(
        self, doors: dict[str, Callable[[dict[str, str]], Plan]], texts: dict[str, str], said: str
    ) -> None:
        for door, read in doors.items():
            with pytest.raises(TangoError) as told:
                read(dict(texts))
            assert str(told.value).startswith(said), door

    def test_a_null_of_json_and_yaml_counts(self, doors: dict[str, Callable[[dict[str, Any]], Plan]]) -> None:
        for door in ("mapping", "VLMEvalKit entry", "lmms-eval model_args"):
            assert doors[door]({"segment_threshold": None}).pruner == TangoPruner()

    @pytest.mark.parametrize("null", [None, "null", "~"])
    def test_a_null_where_none_is_no_value_is_not_given(self, null: str | None) -> None:
        given: dict[str, Any] = {"method": "tango", "retain_ratio": 0.2, "alpha": 2}
        plan = Plan.parse(given)
        assert Plan.parse({"retention_ratio": null, "alpha": null, "layer_layer": null}, given) == plan
        assert Plan.parse({"mean_retention_ratio": null}, given) == plan
        assert Plan.parse({"mean_retention_ratio": null, **given}) == plan
        assert Plan.parse({"retain_ratio": null, "rope": "none"}, method="tango") == Plan.of("tango", {"rope": "none"})
        assert MethodConfig.from_settings({"mean_retention_ratio": null}, given).label == "tango-r0.2-alpha2"

    def test_yaml_without_a_value_is_null(self, tmp_path: Path) -> None:
        (tmp_path / "method.yaml").write_text("method: tango\nalpha:\nretention_ratio: null\nsegment_threshold: ~\n")
        assert at_the_shell("--config", str(tmp_path / "method.yaml")) == Plan.of("tango")
        with pytest.raises(OptionError, match="alpha must be a number, got ''"):  # a variable that was not set
            at_the_shell("--method=tango", "--option", "alpha=")


class TestReading:
    @pytest.mark.parametrize(
        ("value", "hint", "expected"),
        [
            (" 7 ", int, 7), ("7.0", int, 7), (7.0, int, 7), ("-3", int, -3), ("7", float, 7), ("7.0", float, 7.0),
            (1, bool, True), ("", float | None, None), ("none", str | None, None), ("none", str, "none"),
            ("none", Literal["none", "x"] | None, "none"), ("2", Literal[1, 2], 2), ([2, "3"], tuple[int, int], (2, 3)),
            ("(2, 3)", tuple[int, int], (2, 3)), ("1:x", tuple[int, str], (1, "x")), (True, bool, True),
        ],
    )  # fmt: skip
    def test_by_the_annotation(self, value: Any, hint: Any, expected: Any) -> None:
        read = read_option("x", value, hint)
        assert read == expected
        assert type(read) is type(expected)

    @pytest.mark.parametrize(
        ("value", "hint"),
        [
            (True, int), (True, float), ("true", float), (7.5, int), ("inf", int), ("1e999", int), (2, bool),
            (None, int),
            (0.5, bool), ("1:2:3", tuple[int, int]), (5, tuple[int, int]), ("", float), (5, str), ([1], Literal["x"]),
            ({}, float), ("nul", float | None),
        ],
    )  # fmt: skip
    def test_what_means_nothing_is_refused(self, value: Any, hint: Any) -> None:
        with pytest.raises(OptionError, match="x must be "):
            read_option("x", value, hint)

    @pytest.mark.parametrize("name", available_methods())
    def test_every_method_reads_its_own_defaults_as_text(self, name: str) -> None:
        defaults = {item.name: str(item.default) for item in fields(method_class(name))}
        plan = Plan.parse({"method": name, **defaults, "retention_ratio": "0.1"})
        assert plan == Plan.parse({"method": name, "retention_ratio": 0.1})


class TestSources:
    def test_a_ratio_and_a_mean_take_each_others_place(self) -> None:
        ratio, mean = {"retain_ratio": "0.3"}, {"mean_retention_ratio": "0.2"}
        assert Plan.parse(ratio, mean, method="uniform") == Plan.of("uniform", {"retention_ratio": 0.3})
        assert Plan.parse(mean, ratio, method="uniform") == Plan.of("uniform", mean_retention_ratio=0.2)
        with pytest.raises(BudgetError, match="not both"):
            Plan.parse({**ratio, **mean}, method="uniform")

    def test_what_enters_the_llm_beside_the_mean(self) -> None:
        layer = {"method": "tango", "pruned_layer": "18", "pre_retain_ratio": "0.1217"}
        plan = Plan.parse({**layer, "mean_retention_ratio": "0.1"})
        assert plan.pruner == TangoPruner(retention_ratio=0.1217, segment_threshold=0.65)
        assert (plan.mean, plan.layer_pruner) == (None, FastvMergePruner(layer=18))
        assert plan == Plan.parse({**layer, "retain_ratio": "0.1"})

    def test_only_the_releases_scripts_pass_tuning_by(self) -> None:
        settings = {"method": "uniform", "alpha": "2"}
        assert Plan.parse(settings, release=True) == Plan.of("uniform")
        with pytest.raises(tango.UnknownNameError, match="unknown option of uniform 'alpha'"):
            Plan.parse(settings)


class TestDefaults:
    """Whose saliency a method reads where a run does not say."""

    @pytest.mark.parametrize(("name", "saliency"), [("tango", "p-attn"), ("holitom", "attn"), ("visionzip", "attn")])
    def test_saliency_is_the_methods_own(self, name: str, saliency: str) -> None:
        assert Plan.of(name).saliency == Plan.parse({"method": name}).saliency == saliency
        assert Plan(pruner=build_pruner(name)) == Plan.of(build_pruner(name)) == Plan.of(name)
        assert at_the_shell("--method", name).saliency == saliency
        assert at_the_shell("--method", name, "--saliency", "p-attn").saliency == "p-attn"
        with tango.prune(tiny.llava_onevision(), name, saliency=None if saliency == "attn" else "attn") as pruning:
            assert pruning.adapter.saliency == "attn"

    def test_records_say_which_and_labels_where_it_is_another(self) -> None:
        assert MethodConfig(method="holitom").label == "holitom-r0.1"
        assert MethodConfig(method="holitom", saliency="p-attn").label == "holitom-r0.1-p-attn"
        assert MethodConfig(method="tango", saliency="attn").label == "tango-r0.1-attn"
        assert MethodConfig(method="holitom").to_dict()["saliency"] == "attn"

    def test_positions_are_the_methods_own_else_the_models(self) -> None:
        assert Plan.of("tango").positions is None
        assert (
            Plan.of("fastvid").positions == Plan.parse({"method": "fastvid", "positions": "null"}).positions == "kept"
        )
        assert Plan.of("fastvid", positions="contiguous").positions == "contiguous"
        assert MethodConfig(method="fastvid").label == "fastvid-r0.1"
        assert MethodConfig(method="fastvid").to_dict()["positions"] == "kept"
        assert MethodConfig(method="fastvid", positions="contiguous").label == "fastvid-r0.1-contiguous"
        before = {**MethodConfig(method="fastvid").to_dict(), "positions": None}  # as recorded before it had its own
        assert label_of(before) == "fastvid-r0.1-model-positions"


class TestBuiltOnce:
    @pytest.fixture
    def built(self, monkeypatch: pytest.MonkeyPatch) -> list[TangoPruner]:
        made: list[TangoPruner] = []
        check = TangoPruner.__post_init__

        def counted(self: TangoPruner) -> None:
            made.append(self)
            check(self)

        monkeypatch.setattr(TangoPruner, "__post_init__", counted)
        return made

    @pytest.mark.usefixtures("doors")
    def test_by_a_row_of_a_toolkit(self, built: list[TangoPruner]) -> None:
        from tango_lmms_eval.settings import read_settings

        read = read_settings({"pretrained": "p", "alpha": "2"}, {"WRAPPER": "tango", "TANGO_SALIENCY": "attn"})
        assert read.name.startswith(f"{read.method.label}-")
        assert read.method.to_dict()["options"]["alpha"] == 2
        with read.method.apply(tiny.llava_onevision()) as pruning:
            assert pruning is not None
            assert built == [pruning.pruner]
            assert built[0] is pruning.pruner

    def test_but_for_the_ratio_that_a_mean_and_the_llms_depth_give(self, built: list[TangoPruner]) -> None:
        config = MethodConfig.from_settings({"wrapper": "tango", "pruned_layer": 2, "saliency": "attn"})
        assert (config.label, config.to_dict()["mean_retention_ratio"]) == ("tango-m0.1-fastv-merge2-attn", 0.1)
        with config.apply(tiny.llava_onevision()):
            assert [pruner.retention_ratio for pruner in built] == [0.1, pytest.approx(0.1 / 0.75)]


class TestPrune:
    def test_takes_a_plan(self) -> None:
        model = tiny.llava_onevision()
        plan = Plan.parse({"method": "uniform", "retention_ratio": "0.3", "saliency": "attn", "positions": "kept"})
        with tango.prune(model, plan) as pruning:
            assert pruning.pruner == build_pruner("uniform", retention_ratio=0.3)
            assert pruning.adapter.saliency == "attn"
            assert pruning.adapter.positions_are_kept
        with tango.prune(model, Plan()) as pruning:
            assert pruning.method == "none"
        with pytest.raises(OptionError, match="a plan is complete; leave out alpha, saliency"):
            tango.prune(model, plan, alpha=2, saliency="attn")


class TestFormerNames:
    def test_build_for_a_mean(self) -> None:
        with pytest.warns(DeprecationWarning, match=r"Pruner\.for_mean"):
            build = methods.build_pruner_for_mean
        layer = FastvMergePruner(layer=18)
        assert build("tango", 0.1, layer, 28, alpha=2) == TangoPruner(alpha=2).for_mean(0.1, 28, layer)
        with pytest.raises(BudgetError, match="not both"):
            build("tango", 0.1, None, 28, retention_ratio=0.2)
        with pytest.warns(DeprecationWarning, match=r"LayerPruner\.for_mean"):
            build_inside = methods.build_layer_pruner_for_mean
        assert build_inside("fastv", 28, 0.3) == methods.build_layer_pruner("fastv").for_mean(0.3, 28)
        with pytest.raises(AttributeError, match="no attribute 'build_for_mean'"):
            methods.build_for_mean  # noqa: B018

    def test_method_from(self) -> None:
        with pytest.warns(DeprecationWarning, match=r"MethodConfig\.from_settings"):
            assert former_method_from({"wrapper": "tango", "retain_ratio": "0.2"}).label == "tango-r0.2"
