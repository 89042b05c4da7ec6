"""Learned methods: weights by name, read once for a model, and options that stay plain values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tango
from tango.containers import LayerTokens, PrunedTokens, VisualTokens
from tango.errors import OptionError, TangoError
from tango.evaluation import MethodConfig
from tango.methods import LayerPruner, Pruner, build_pruner, ready_pruners, register, registry
from tests import tiny
from tests.foreign import write_scorer
from tests.synthetic import video_tokens

DIM = 128  # of the tiny model's features


@dataclass(frozen=True, kw_only=True)
class ScorerPruner(Pruner):
    """Keep the tokens that a linear scorer likes best."""

    weights: str = ""

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        x = tokens.features.flatten(0, 1)
        scores = x.float() @ self.tensors["direction"]
        indices = scores.topk(max(1, round(self.retention_ratio * len(x)))).indices.sort().values
        return PrunedTokens(features=x[indices], indices=indices)


@dataclass(frozen=True, kw_only=True)
class LayerScorerPruner(LayerPruner):
    """The same at a decoder layer."""

    layer: int = 1
    weights: str = ""

    def prune(self, tokens: LayerTokens) -> tuple[Tensor, Tensor]:
        x = tokens.hidden[tokens.visual]
        K = max(1, round(self.retention_ratio * len(x)))
        indices = (x.float() @ self.tensors["direction"]).topk(K).indices.sort().values
        return x[indices], indices


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both are known during a test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register("scorer")(ScorerPruner)
    register("layer-scorer")(LayerScorerPruner)
    yield
    del ScorerPruner.name, LayerScorerPruner.name


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(write_scorer(tmp_path / "scorer.safetensors", DIM))


def model() -> nn.Module:
    return tiny.llava_onevision()


class TestBind:
    def test_gives_a_copy_its_tensors(self, weights: str) -> None:
        pruner = build_pruner("scorer", weights=weights)
        bound = pruner.bind(model())
        assert set(bound.tensors) == {"direction"}
        assert bound.tensors["direction"].shape == (DIM,)
        with pytest.raises(TangoError, match=r"scorer has read no weights yet; tango\.prune does it"):
            pruner.tensors  # noqa: B018 - the first is as it was

    def test_leaves_options_as_they_are(self, weights: str) -> None:
        pruner = build_pruner("scorer", weights=weights, retention_ratio=0.3)
        bound = pruner.bind(model())
        assert bound == pruner
        assert hash(bound) == hash(pruner)
        assert repr(bound) == repr(pruner)
        assert json.loads(json.dumps(bound.config())) == pruner.config()
        assert bound.config() == {"retention_ratio": 0.3, "exact_budget": False, "weights": weights}
        with pytest.raises(FrozenInstanceError):
            bound.weights = "other"  # type: ignore[attr-defined]

    def test_new_options_need_to_be_bound_anew(self, weights: str) -> None:
        bound = build_pruner("scorer", weights=weights).bind(model())
        with pytest.raises(TangoError, match="has read no weights yet"):
            replace(bound, retention_ratio=0.5)(video_tokens(frames=2, grid=(2, 2), dim=DIM))

    def test_of_a_method_without_weights_is_the_method(self) -> None:
        pruner = build_pruner("tango")
        assert pruner.bind(model()) is pruner
        with pytest.raises(TangoError, match="tango has read no weights"):
            pruner.tensors  # noqa: B018

    def test_reads_what_the_file_holds_now(self, weights: str) -> None:
        pruner = build_pruner("scorer", weights=weights)
        first = pruner.bind(model())
        write_scorer(Path(weights), DIM, seed=1)
        assert not torch.equal(pruner.bind(model()).tensors["direction"], first.tensors["direction"])


@pytest.mark.parametrize("place", ["prune", "config"])
class TestWeightsThatCannotBeUsed:
    """Refused by `tango.prune`, and by a configuration before there is a model; the stock model is left as it was."""

    def refused(self, place: str, weights: str) -> str:
        stock = model()
        before = dict(vars(stock))
        calls: dict[str, Callable[[], object]] = {
            "prune": lambda: tango.prune(stock, "scorer", weights=weights),
            "config": lambda: MethodConfig(method="scorer", options={"weights": weights}),
        }
        with pytest.raises(OptionError) as error:
            calls[place]()
        assert vars(stock) == before
        return str(error.value)

    def test_none_given(self, place: str) -> None:
        assert self.refused(place, "") == "scorer is learned: give it a safetensors file, weights=PATH"

    def test_no_such_file(self, place: str, tmp_path: Path) -> None:
        message = self.refused(place, str(tmp_path / "none.safetensors"))
        assert message.startswith(
            f"scorer needs a safetensors file as weights, got '{tmp_path}/none.safetensors': No such"
        )

    def test_a_folder(self, place: str, tmp_path: Path) -> None:
        assert f"got '{tmp_path}'" in self.refused(place, str(tmp_path))

    def test_another_kind_of_file(self, place: str, tmp_path: Path) -> None:
        torch.save({"direction": torch.zeros(DIM)}, tmp_path / "scorer.pt")
        assert "scorer.pt'" in self.refused(place, str(tmp_path / "scorer.pt"))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"direction": torch.full((DIM,), torch.nan)}, tmp_path / "w.safetensors")
    with pytest.raises(
        OptionError, match=r"direction in the weights '.*w.safetensors' of scorer holds NaN or infinity"
    ):
        build_pruner("scorer", weights=str(tmp_path / "w.safetensors")).bind(model())


class TestPruning:
    def test_keeps_what_the_weights_say(self, weights: str) -> None:
        stock = model()
        inputs = {**tiny.batch(tiny.prompt("a", 6, "b")), "pixel_values_videos": tiny.clip(0)[None]}
        with tango.prune(stock, "scorer", weights=weights, retention_ratio=0.25) as pruning:
            stock.generate(**inputs, max_new_tokens=2)
            assert pruning.stats is not None
            assert (pruning.stats.tokens_before, pruning.stats.tokens_after) == (96, 24)
            (tokens,) = pruning.adapter.encode_videos(inputs, pruning.pruner.wants, pruning.stats.timer).videos
            kept = pruning.pruner(tokens).indices
        direction = torch.randn(DIM, generator=torch.Generator().manual_seed(0))
        scores = tokens.features.flatten(0, 1) @ direction
        assert set(kept.tolist()) == set(scores.argsort(descending=True)[:24].tolist())

    def test_inside_the_llm(self, weights: str) -> None:
        stock = model()
        inputs = {**tiny.batch(tiny.prompt("a", 6, "b")), "pixel_values_videos": tiny.clip(0)[None]}
        with tango.prune(stock, LayerScorerPruner(weights=weights, retention_ratio=0.25)) as pruning:
            stock.generate(**inputs, max_new_tokens=2)
            assert pruning.stats is not None
            assert pruning.stats.layer is not None
            assert len(pruning.stats.layer.places[0][0]) == round(0.25 * 97)


def test_all_tokens_need_no_weights() -> None:
    tokens = video_tokens(frames=2, grid=(2, 2), dim=DIM)
    assert len(build_pruner("scorer", retention_ratio=1.0)(tokens).indices) == 8


def test_ready_pruners_are_those_without_weights() -> None:
    assert "scorer" in tango.available_pruners()
    assert ready_pruners() == [name for name in tango.available_pruners() if name != "scorer"]


def test_labels_name_the_content_of_weights(weights: str, tmp_path: Path) -> None:
    label = MethodConfig(method="scorer", options={"weights": weights}).label
    Path(weights).rename(tmp_path / "moved.safetensors")
    moved = {"weights": str(tmp_path / "moved.safetensors")}
    assert MethodConfig(method="scorer", options=moved).label == label
    assert label.startswith("scorer-r0.1-weights")
    assert len(label) == len("scorer-r0.1-weights") + 8
    write_scorer(tmp_path / "moved.safetensors", DIM, seed=1)
    assert MethodConfig(method="scorer", options=moved).label != label
