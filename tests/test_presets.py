"""Presets: settings of a method's authors, by model family, as explicit options wherever a run names one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import tango
from tango.cli import main
from tango.containers import PrunedTokens, VisualTokens
from tango.errors import OptionError, TangoError, UnknownNameError
from tango.evaluation import MethodConfig
from tango.methods import Plan, available_methods, build_layer_pruner, method_class, registry
from tango.methods.base import Presets, Pruner
from tango.methods.fastvid import FastVidPruner
from tango.models.llava_onevision import LlavaOnevisionAdapter
from tango.models.llava_video import LlavaVideoAdapter
from tests import tiny, tiny_qwen
from tests.models.test_llava_video import one_video
from tests.test_plan import at_the_shell, doors

FAMILIES = {"llava-onevision", "llava-video", "qwen2.5-vl", "qwen3-vl"}

__all__ = ["doors"]  # a fixture


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> type[Pruner]:
    """A method whose authors prune again inside the LLM."""

    @dataclass(frozen=True, kw_only=True)
    class Staged(Pruner):
        """Keep the first tokens."""

        name: ClassVar[str] = "staged"
        depth: int = 1
        presets: ClassVar[Presets] = {
            "a-model": {"depth": 5, "pruned_layer": 2, "layer_pruner": "fastv", "layer_retention_ratio": 0.3},
            "b-model": {"tower": "earlytom-frames", "tower_blocks": "1"},
        }

        def prune(self, tokens: VisualTokens) -> PrunedTokens:
            indices = torch.arange(3)
            return PrunedTokens(features=tokens.features.flatten(0, 1)[indices], indices=indices)

    monkeypatch.setitem(registry._METHODS, "staged", Staged)
    return Staged


class TestMeaning:
    SEGMENT: ClassVar[FastVidPruner] = FastVidPruner(rule="segment", retention_ratio=0.2)

    def test_it_stands_for_options(self) -> None:
        given = {"method": "fastvid", "retention_ratio": "0.2"}
        config = MethodConfig.from_settings({**given, "preset": "llava-video"})
        assert config.plan.pruner == self.SEGMENT
        assert config == MethodConfig.from_settings({**given, "rule": "segment"})
        assert "preset" not in json.dumps(config.to_dict())
        assert config.label == "fastvid-r0.2-rulesegment"
        qwen = Plan.parse({"method": "fastvid", "preset": "qwen2.5-vl"}).pruner
        expected = {"rule": "segment", "segment_threshold": 0.84, "duplicate_threshold": 0.95, "frame_vector": "mean"}
        assert qwen == FastVidPruner(**expected)  # type: ignore[arg-type]
        assert Plan.parse({"method": "fastvid", "preset": "llava-onevision"}) == Plan.of("fastvid")

    def test_at_every_door(self, doors: dict[str, Callable[[dict[str, str]], Plan]]) -> None:
        from tango_lmms_eval.settings import read_settings

        for door, read in doors.items():  # they are made for another method, and all refuse what it does not have
            with pytest.raises(TangoError, match=r"^unknown preset of tango 'llava-video'\. Known: none"):
                read({"preset": "llava-video"})
            assert read({"preset": "none"}) == Plan.of("tango"), door
        assert at_the_shell("--method=fastvid", "--preset=llava-video", "--retention-ratio=0.2").pruner == self.SEGMENT
        given = {"pretrained": "p", "wrapper": "fastvid", "preset": "llava-video", "retain_ratio": 0.2}
        assert read_settings(given, {}).method.plan.pruner == self.SEGMENT
        with tango.prune(tiny.llava_video(), "fastvid", preset="llava-video", retention_ratio=0.2) as pruning:
            assert pruning.pruner == self.SEGMENT

    @pytest.mark.parametrize("null", [None, "", "none", "null"])
    def test_none_is_none(self, null: str | None) -> None:
        assert Plan.parse({"method": "fastvid", "preset": null}, {"preset": "llava-video"}) == Plan.of("fastvid")

    def test_unknown_ones_are_refused(self) -> None:
        for read in (lambda **given: Plan.parse(given), lambda method, **given: Plan.of(method, **given)):
            with pytest.raises(UnknownNameError, match=r"preset of fastvid 'lava-video'. Did you mean 'llava-video'"):
                read(method="fastvid", preset="lava-video")
        with pytest.raises(UnknownNameError, match=r"Known: llava-onevision, llava-video, none, qwen2\.5-vl$"):
            MethodConfig.from_settings({"method": "fastvid", "preset": "x"})
        with pytest.raises(UnknownNameError, match="unknown preset of none 'llava-video'"):
            MethodConfig.from_settings({"preset": "llava-video"})


class TestOrder:
    def test_explicit_options_win(self) -> None:
        def rule(*sources: dict[str, Any]) -> Any:
            return Plan.parse(*sources, method="fastvid").pruner.config()["rule"]

        preset, other = {"preset": "llava-video"}, {"rule": "onevision"}
        assert rule({**preset, **other}) == rule(other, preset) == "onevision"
        assert rule(preset, other) == "segment"  # the flag of a command, and a file with all defaults
        assert Plan.of("fastvid", other, preset="llava-video").pruner == FastVidPruner()

    def test_the_first_one_counts_alone(self) -> None:
        plan = Plan.parse({"preset": "llava-video"}, {"preset": "qwen2.5-vl"}, method="fastvid")
        assert plan.pruner == FastVidPruner(rule="segment")

    def test_at_the_shell(self) -> None:
        flags = ("--config", "fastvid", "--preset", "llava-video")  # the file lists all defaults
        assert at_the_shell(*flags).pruner == FastVidPruner(rule="segment")
        assert at_the_shell(*flags, "--option", "rule=onevision").pruner == FastVidPruner()


class TestStages:
    def test_a_preset_may_prune_again(self, staged: type[Pruner]) -> None:
        expected = Plan(
            pruner=staged(depth=5),  # type: ignore[call-arg]
            layer_pruner=build_layer_pruner("fastv", layer=2, retention_ratio=0.3),
            mean=0.1,
        )
        assert Plan.of("staged", preset="a-model") == expected
        assert Plan.parse({"method": "staged", "preset": "a-model", "retention_ratio": 0.1}) == expected
        assert Plan.of("staged", preset="a-model", mean_retention_ratio=0.1) == expected
        assert MethodConfig.from_settings({"method": "staged", "preset": "a-model"}).plan == expected
        # Layers 0 and 1 see all r, the other two 0.3 r: r (2 + 0.6) / 4 = 0.1
        assert expected.pruners(4)[0].retention_ratio == pytest.approx(0.1 * 4 / 2.6)

    def test_another_layer_pruner_takes_no_options_of_the_presets(self, staged: type[Pruner]) -> None:
        del staged
        given = {"method": "staged", "preset": "a-model"}
        plan = Plan.parse({**given, "layer_pruner": "fastv-merge"})
        assert plan.layer_pruner == build_layer_pruner("fastv-merge")
        assert plan.pruner.config()["depth"] == 5
        assert Plan.parse({**given, "layer_pruner": "none"}).layer_pruner is None
        assert Plan.parse({**given, "layer_layer": "3"}).layer_pruner == build_layer_pruner(
            "fastv", layer=3, retention_ratio=0.3
        )
        assert Plan.of("staged", preset="a-model", layer_pruner="fastv", layer_options={"layer": 3}) == Plan.parse(
            {**given, "layer_layer": 3}
        )

    def test_and_another_tower_method_neither(self, staged: type[Pruner]) -> None:
        del staged
        given = {"method": "staged", "preset": "b-model"}
        assert Plan.parse(given).tower == registry.build_tower_merger("earlytom-frames", blocks="1")
        other = Plan.parse({**given, "tower": "earlytom-frames-release"}).tower
        assert other == registry.build_tower_merger("earlytom-frames-release")

    def test_built_methods(self, staged: type[Pruner]) -> None:
        layer_pruner = build_layer_pruner("fastv-merge")
        plan = Plan.of("fastvid", preset="llava-video", layer_pruner=layer_pruner)
        assert (plan.pruner, plan.layer_pruner) == (FastVidPruner(rule="segment"), layer_pruner)
        with pytest.raises(OptionError, match="preset 'a-model' has a layer_pruner of its own; give yours by its name"):
            Plan.of("staged", preset="a-model", layer_pruner=layer_pruner)
        with pytest.raises(
            TangoError, match="staged is built already; for the preset 'a-model' give the method's name"
        ):
            Plan.of(staged(), preset="a-model")


def test_flashvids_ratio_is_the_mean_over_layers() -> None:
    plan = Plan.of("flashvid", {"retention_ratio": 0.1}, preset="llava-onevision")
    assert plan == Plan.parse({"method": "flashvid", "retain_ratio": 0.1, "preset": "llava-onevision"}, release=True)
    pruner, layer_pruner = plan.pruners(28)
    assert layer_pruner == build_layer_pruner("flashvid-select", layer=20, retention_ratio=0.3)
    assert pruner.retention_ratio == pytest.approx(0.125)  # r (20 + 8 * 0.3) / 28 = 0.1
    assert MethodConfig.from_settings({"method": "flashvid", "preset": "qwen3-vl"}).plan.layer_pruner == (
        build_layer_pruner("flashvid-select", layer=28, retention_ratio=0.1)
    )


@pytest.mark.parametrize("name", available_methods())
def test_every_preset_can_be_used_and_is_named_by_its_family(name: str) -> None:
    presets = method_class(name).presets
    assert presets.keys() <= FAMILIES
    for family, settings in presets.items():
        config = MethodConfig.from_settings({"method": name, "preset": family})
        assert MethodConfig(**config.to_dict()).to_dict() == config.to_dict()  # plain options, from which it is rebuilt
        assert config == MethodConfig.from_settings({"method": name, **settings})


def test_methods_lists_defaults_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    own = text[text.index("\nfastvid ") :].partition("\nframefusion")[0]
    assert "preset llava-video: rule='segment'\n" in own
    assert "preset llava-onevision: the defaults\n" in own
    assert "positions: kept\n" in own
    assert "saliency: p-attn\n" in own
    assert main(["methods", "--json"]) == 0
    methods = {method["name"]: method for method in json.loads(capsys.readouterr().out)}
    assert methods["holitom"]["saliency"] == "attn"
    assert methods["uniform"]["saliency"] is None  # it reads none
    assert methods["fastvid"]["presets"]["llava-video"] == {"rule": "segment"}


class TestPositionsOfAMethodsOwn:
    def test_llava_keeps_them(self) -> None:
        with tango.prune(tiny.llava_onevision(), "fastvid") as pruning:
            assert pruning.adapter.positions_are_kept
        with tango.prune(tiny.llava_onevision(), "fastvid", positions="contiguous") as pruning:
            assert not pruning.adapter.positions_are_kept

    @pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
    def test_qwen_always_keeps_them(self, family: str) -> None:
        model = tiny_qwen.model(family)
        inputs = tiny_qwen.inputs(family, ("Look", tiny_qwen.WIDE))
        logits = []
        for positions in (None, "kept", "correct"):
            with tango.prune(model, "fastvid", saliency="attn", positions=positions) as pruning, torch.no_grad():
                assert pruning.adapter.position_rule == "correct"
                logits.append(model(**inputs).logits)
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2])

    def test_a_family_with_one_rule_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class OneRule(LlavaOnevisionAdapter):
            def __init__(self, model: Any, *, saliency: str = "p-attn"):
                super().__init__(model, saliency=saliency)

        monkeypatch.setattr("tango.runtime.pruning.unwrap", lambda model: (model, OneRule))
        with tango.prune(tiny.llava_onevision(), "fastvid") as pruning:
            assert isinstance(pruning.adapter, OneRule)
        for positions in ("contiguous", "stock"):
            with pytest.raises(OptionError, match="OneRule has no option positions"):
                tango.prune(tiny.llava_onevision(), "fastvid", positions=positions)


class TestNewlines:
    def test_rows_without_tokens_keep_theirs(self) -> None:
        model = tiny.llava_video()
        T, H, W = 2, 2, 3
        adapter = LlavaVideoAdapter(model)
        adapter.keep_newlines = True
        D = model.config.text_config.hidden_size
        features = torch.arange(T * H * W, dtype=torch.float32)[:, None].expand(-1, D) + 1000
        tokens = VisualTokens(features=features.view(T, H * W, D), grid=(H, W), timestamps_s=torch.arange(T))
        kept = torch.tensor([1, 4, 5])
        embeds, keep_mask = adapter.lay_out(tokens, PrunedTokens(features=features[kept], indices=kept))
        # Rows of three tokens and a newline, t0y0 t0y1 t1y0 t1y1; the tokens 1, 4 and 5 stay.
        assert keep_mask.int().tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        newline = model.model.image_newline
        words = ["newline" if torch.equal(row, newline) else int(row[0]) - 1000 for row in embeds]
        assert words == [1, "newline", 4, 5, "newline", "newline", "newline"]

    @pytest.mark.parametrize("method", ["visionzip", "vidcom2"])
    def test_as_their_authors_on_llava_video(self, method: str) -> None:
        model = tiny.llava_video()
        inputs = one_video(model)
        entering = {}
        for preset in (None, "llava-video"):
            with tango.prune(model, method, preset=preset, retention_ratio=0.1) as pruning, torch.no_grad():
                model(**inputs)
                stats = pruning.stats
                assert stats is not None
                (video,) = stats.videos
                newlines = stats.entering_after - video.tokens_after
                entering[preset] = newlines
                rows = video.frames * pruning.adapter.grid[0]
        assert entering["llava-video"] == rows > entering[None]
        config = MethodConfig.from_settings({"method": method, "preset": "llava-video"})
        assert config.to_dict()["keep_newlines"] is True
        assert config.label == f"{method}-r0.1-keep_newlines"
        assert "keep_newlines" not in MethodConfig(method=method).to_dict()

    def test_a_model_without_newlines_of_rows_refuses_them(self) -> None:
        for model in (tiny.llava_onevision(), tiny_qwen.model("qwen2_5_vl")):
            with pytest.raises(OptionError, match=r"a newline after every row; (LLaVA-OneVision|Qwen2\.5-VL) has"):
                tango.prune(model, "vidcom2", preset="llava-video")
