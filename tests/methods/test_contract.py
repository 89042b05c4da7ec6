"""What every registered pruning method promises, whatever it does inside."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tango.containers import PrunedTokens, Signal, VisualTokens
from tango.errors import BudgetError, MissingSignalError, OptionError, UnknownNameError
from tango.methods import build_pruner, pruner_class, ready_pruners
from tests.synthetic import video_tokens

METHODS = ready_pruners()
MISPLACING = {"tango-release"}  # a merged row of these is stored at another anchor of its group, on purpose


def constant(value: float, saliency: float) -> VisualTokens:
    return VisualTokens(
        features=torch.full((6, 25, 24), value),
        grid=(5, 5),
        timestamps_s=torch.arange(6.0),
        saliency=torch.full((6, 25), saliency),
        frame_embeds=torch.full((6, 8), value),
        keys=torch.full((6, 25, 7), value),
        text=torch.full((4, 24), value),
        sink_positions=(0,),
    )


def small_video(**options: Any) -> VisualTokens:
    return video_tokens(**{"frames": 6, "grid": (5, 5), "dim": 24, **options})


CASES: dict[str, Callable[[], VisualTokens]] = {
    "video": lambda: small_video(flicker=0.6, sinks=(3, 17)),
    "one_frame": lambda: small_video(frames=1, scenes=1),
    "two_frames": lambda: small_video(frames=2, scenes=1),
    "ten_frames": lambda: small_video(frames=10, scenes=4),
    "one_segment": lambda: small_video(scenes=1, static=0.5),
    "all_static": lambda: small_video(scenes=1, static=1.0),
    "all_dynamic": lambda: small_video(static=0.0),
    "wide_grid": lambda: small_video(grid=(3, 11)),
    "one_token_per_frame": lambda: small_video(grid=(1, 1)),
    "two_channels": lambda: small_video(dim=2),
    "channels_not_in_thirds": lambda: small_video(dim=50),
    "constant": lambda: constant(0.5, 0.04),
    "black": lambda: constant(0.0, 0.0),
}
FEW_CASES = ("video", "one_frame", "all_dynamic", "constant")


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FEW_CASES)
def tokens(request: pytest.FixtureRequest) -> VisualTokens:
    return CASES[request.param]()


@cache
def run(method: str, case: str, exact_budget: bool) -> tuple[VisualTokens, PrunedTokens]:
    tokens = CASES[case]()
    return tokens, build_pruner(method, retention_ratio=0.15, exact_budget=exact_budget)(tokens)


def tensors(tokens: VisualTokens) -> dict[str, Tensor]:
    values = {field.name: getattr(tokens, field.name) for field in dataclasses.fields(tokens)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def assert_same(a: PrunedTokens, b: PrunedTokens) -> None:
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.features, b.features)
    assert (a.assignment is None) == (b.assignment is None)
    assert a.assignment is None or torch.equal(a.assignment, b.assignment)


class TestResult:
    @pytest.mark.parametrize("exact_budget", [False, True])
    def test_indices_and_features_fit(self, method: str, case: str, exact_budget: bool) -> None:
        tokens, pruned = run(method, case, exact_budget)
        T, N, D = tokens.features.shape
        K = len(pruned.indices)
        assert 1 <= K <= T * N
        assert pruned.indices.dtype == torch.int64
        assert pruned.indices.min() >= 0
        assert pruned.indices.max() < T * N
        assert (pruned.indices.diff() > 0).all()
        assert pruned.features.shape == (K, D)
        assert pruned.features.isfinite().all()

    @pytest.mark.parametrize("exact_budget", [False, True])
    def test_assignment_fits(self, method: str, case: str, exact_budget: bool) -> None:
        tokens, pruned = run(method, case, exact_budget)
        if pruned.assignment is None:  # states nothing
            return
        T, N, _ = tokens.features.shape
        K = len(pruned.indices)
        assert pruned.assignment.shape == (T * N,)
        assert pruned.assignment.min() >= -1
        assert pruned.assignment.max() < K
        own_row = pruned.assignment[pruned.indices]
        if method in MISPLACING:
            own_row = own_row.sort().values
        assert torch.equal(own_row, torch.arange(K))  # so every row has at least one member

    @pytest.mark.usefixtures("unchecked_annotations")
    @pytest.mark.parametrize("ratio", [1e-6, 0.05, 0.4, 0.95])
    def test_exact_budget_keeps_a_number_known_from_the_shape(self, method: str, case: str, ratio: float) -> None:
        tokens = CASES[case]()
        pruned = build_pruner(method, retention_ratio=ratio, exact_budget=True)(tokens)
        T, N, _ = tokens.features.shape
        assert len(pruned.indices) == max(1, round(ratio * T * N))

    @pytest.mark.parametrize(
        "options", [{"retention_ratio": 1}, {"retention_ratio": 1.0, "exact_budget": True}], ids=str
    )
    def test_ratio_one_returns_all_tokens_to_the_last_bit(
        self, method: str, tokens: VisualTokens, options: dict[str, Any]
    ) -> None:
        pruned = build_pruner(method, **options)(tokens)
        T, N, D = tokens.features.shape
        assert torch.equal(pruned.features, tokens.features.reshape(T * N, D))
        assert torch.equal(pruned.indices, torch.arange(T * N))
        assert pruned.assignment is not None
        assert torch.equal(pruned.assignment, torch.arange(T * N))

    @pytest.mark.parametrize("ratio", [0.1, 1.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_features_keep_their_dtype(self, method: str, dtype: torch.dtype, ratio: float) -> None:
        pruned = build_pruner(method, retention_ratio=ratio)(small_video(dtype=dtype))
        assert pruned.features.dtype == dtype
        assert pruned.features.isfinite().all()


@pytest.mark.usefixtures("unchecked_annotations")
class TestPurity:
    def test_inputs_are_not_written_to(self, method: str, tokens: VisualTokens) -> None:
        before = {name: (value.clone(), value._version) for name, value in tensors(tokens).items()}
        build_pruner(method)(tokens)
        for name, value in tensors(tokens).items():
            assert torch.equal(value, before[name][0]), name
            assert value._version == before[name][1], name

    def test_the_same_input_gives_the_same_result(self, method: str, tokens: VisualTokens) -> None:
        pruner = build_pruner(method)
        first = pruner(tokens)
        pruner(small_video(seed=1, frames=5))  # another video in between leaves no trace
        assert_same(pruner(tokens), first)
        assert_same(build_pruner(method)(tokens), first)

    def test_global_random_generators_are_left_alone(self, method: str) -> None:
        def states() -> tuple[Any, ...]:
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

        before = states()
        build_pruner(method)(small_video())
        assert states() == before

    def test_result_does_not_depend_on_the_global_seed(self, method: str) -> None:
        tokens, results = small_video(), []
        with torch.random.fork_rng():
            for seed in (0, 1):
                torch.manual_seed(seed)
                results.append(build_pruner(method)(tokens))
        assert_same(*results)

    def test_memory_layout_does_not_matter(self, method: str) -> None:
        tokens = small_video()
        assert tokens.saliency is not None
        strided = dataclasses.replace(
            tokens,
            features=tokens.features.permute(2, 1, 0).contiguous().permute(2, 1, 0),
            saliency=tokens.saliency.mT.contiguous().mT,
        )
        assert not strided.features.is_contiguous()
        pruner = build_pruner(method)
        assert torch.equal(pruner(strided).indices, pruner(tokens).indices)
        torch.testing.assert_close(pruner(strided).features, pruner(tokens).features)

    def test_an_instance_cannot_be_changed(self, method: str) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            build_pruner(method).retention_ratio = 0.5  # type: ignore[misc]


@pytest.mark.usefixtures("unchecked_annotations")
class TestGradients:
    @pytest.mark.parametrize("ratio", [0.1, 1.0])
    def test_reach_the_features_and_not_the_choice(self, method: str, ratio: float) -> None:
        tokens = small_video()
        features = tokens.features.clone().requires_grad_()
        pruner = build_pruner(method, retention_ratio=ratio)
        pruned = pruner(dataclasses.replace(tokens, features=features))
        assert not pruned.indices.requires_grad
        assert torch.equal(pruned.indices, pruner(tokens).indices)
        pruned.features.sum().backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        assert (features.grad.flatten(0, 1)[pruned.indices] > 0).all()

    def test_inference_mode_changes_nothing(self, method: str) -> None:
        tokens, pruner = small_video(), build_pruner(method)
        with torch.inference_mode():
            result = pruner(tokens)
        assert_same(pruner(tokens), result)


@pytest.mark.usefixtures("unchecked_annotations")
class TestSignals:
    BARE: tuple[str, ...] = ("saliency", "frame_embeds", "keys", "text")

    def test_what_is_not_needed_may_be_missing(self, method: str) -> None:
        needs = pruner_class(method).needs
        missing = {name: None for name in self.BARE if Signal[name.upper()] not in needs}
        pruned = build_pruner(method)(dataclasses.replace(small_video(), **missing))
        assert len(pruned.indices) > 0

    @pytest.mark.parametrize("signal", BARE)
    def test_what_is_needed_is_asked_for_by_name(self, method: str, signal: str) -> None:
        if Signal[signal.upper()] not in pruner_class(method).needs:
            return
        tokens = dataclasses.replace(small_video(), **{signal: None})
        with pytest.raises(MissingSignalError, match=f"{method} needs {signal} .*carry none"):
            build_pruner(method)(tokens)

    def test_ratio_one_needs_nothing(self, method: str) -> None:
        bare = dataclasses.replace(small_video(), saliency=None, frame_embeds=None, keys=None, text=None)
        assert len(build_pruner(method, retention_ratio=1.0)(bare).indices) == 6 * 25

    def test_wants_at_least_what_it_needs(self, method: str) -> None:
        pruner = build_pruner(method)
        assert pruner.wants & pruner.needs == pruner.needs


@pytest.mark.usefixtures("unchecked_annotations")
class TestConfiguration:
    @pytest.mark.parametrize("options", [{}, {"retention_ratio": 0.25, "exact_budget": True}], ids=str)
    def test_survives_a_trip_through_text(self, method: str, options: dict[str, Any]) -> None:
        pruner = build_pruner(method, **options)
        rebuilt = build_pruner(method, **json.loads(json.dumps(pruner.config())))
        assert rebuilt == pruner
        assert hash(rebuilt) == hash(pruner)
        assert type(rebuilt) is type(pruner)
        assert_same(rebuilt(small_video()), pruner(small_video()))

    def test_holds_every_option_and_nothing_else(self, method: str) -> None:
        pruner = build_pruner(method, retention_ratio=0.3)
        assert set(pruner.config()) == {field.name for field in dataclasses.fields(pruner)}
        assert pruner.config()["retention_ratio"] == 0.3

    def test_default_keeps_a_tenth(self, method: str) -> None:
        pruner = build_pruner(method)
        assert pruner.retention_ratio == 0.1
        assert not pruner.exact_budget

    @pytest.mark.parametrize("ratio", [0, 0.0, -0.1, 1.5, 10, math.nan, math.inf], ids=repr)
    def test_ratios_out_of_range_are_refused(self, method: str, ratio: float) -> None:
        with pytest.raises(BudgetError, match=r"retention_ratio must lie in \(0, 1\], got"):
            build_pruner(method, retention_ratio=ratio)

    @pytest.mark.parametrize("ratio", ["0.1", None, True, [0.1]], ids=repr)
    def test_ratios_that_are_no_numbers_are_refused(self, method: str, ratio: Any) -> None:
        with pytest.raises(OptionError, match="retention_ratio must be a number, got"):
            build_pruner(method, retention_ratio=ratio)

    def test_refusal_names_the_value_and_shows_a_good_one(self, method: str) -> None:
        with pytest.raises(BudgetError, match=r"got 10\. 0\.1 keeps one token in ten"):
            build_pruner(method, retention_ratio=10)

    def test_unknown_options_are_refused_with_the_nearest_known_one(self, method: str) -> None:
        message = f"unknown option of {method} 'retain_ratio'. Did you mean 'retention_ratio'"
        with pytest.raises(UnknownNameError, match=message):
            build_pruner(method, retain_ratio=0.1)

    def test_says_where_it_comes_from_and_how_much_it_keeps(self, method: str) -> None:
        cls = pruner_class(method)
        assert cls.paper.title
        assert cls.budget_rule
        assert cls.__doc__


class TestInput:
    """Tokens that do not fit together are refused before any method sees them."""

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            (
                {"features": torch.rand(6, 25)},
                r"floating-point \(T, N, D\) tensor, got torch.float32 of shape \(6, 25\)",
            ),
            ({"features": torch.ones(6, 25, 4, dtype=torch.int64)}, "floating-point .* got torch.int64"),
            ({"features": torch.rand(0, 25, 4)}, r"need a \(H, W\) grid of 25, got \(5, 5\)"),
            ({"grid": (5, 4)}, r"need a \(H, W\) grid of 25, got \(5, 4\)"),
            ({"grid": (25, 0)}, r"grid of 25, got \(25, 0\)"),
            ({"timestamps_s": torch.rand(5)}, r"timestamps_s must have shape \(6,\) .*got \(5,\)"),
            ({"saliency": torch.rand(6, 24)}, r"saliency must have shape \(6, 25\) .*got \(6, 24\)"),
            ({"saliency": torch.rand(25)}, r"saliency must have shape \(6, 25\) .*got \(25,\)"),
            ({"frame_embeds": torch.rand(7, 3)}, r"frame_embeds must have shape \(6, None\) .*got \(7, 3\)"),
            ({"keys": torch.rand(6, 24, 3)}, r"keys must have shape \(6, 25, None\) .*got \(6, 24, 3\)"),
            ({"text": torch.rand(4, 23)}, r"text must have shape \(None, 24\) .*got \(4, 23\)"),
            ({"text": torch.rand(0, 24)}, r"text must have shape \(None, 24\) .*got \(0, 24\)"),
            ({"keys": torch.rand(6, 25)}, r"keys must have shape \(6, 25, None\) .*got \(6, 25\)"),
            ({"sink_positions": (0, 25)}, r"sink_positions must lie in \[0, 25\), got \(0, 25\)"),
            ({"sink_positions": (-1,)}, r"sink_positions must lie in \[0, 25\)"),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    def test_parts_that_do_not_fit(self, broken: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(small_video(), **broken)
