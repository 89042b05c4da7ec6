"""tango.methods.registry: names in, pruners out."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import tango
import tango.methods
from tango.containers import Paper, PrunedTokens, VisualTokens, keep_all
from tango.errors import BudgetError, TangoError, UnknownNameError
from tango.methods import Pruner, available_pruners, build_pruner, pruner_class, register, registry


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register methods that are gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@dataclass(frozen=True, kw_only=True)
class KeepAllPruner(Pruner):
    """Keeps everything."""

    strength: float = 0.5

    paper: ClassVar[Paper] = Paper(title="none", venue="-")

    def prune(self, tokens: VisualTokens) -> PrunedTokens:
        return keep_all(tokens)


class TestNames:
    def test_are_sorted_and_contain_the_promised_ones(self) -> None:
        names = available_pruners()
        assert names == sorted(names)
        assert {"tango", "tango-paper", "tango-release", "uniform", "random"} <= set(names)

    @pytest.mark.parametrize("name", available_pruners())
    def test_options_are_none_of_prunes_own_arguments(self, name: str) -> None:
        own = set(inspect.signature(tango.prune).parameters) - {"options"}
        assert not own & {field.name for field in dataclasses.fields(pruner_class(name))}

    def test_list_is_a_copy(self) -> None:
        available_pruners().clear()
        assert available_pruners()

    @pytest.mark.parametrize("name", available_pruners())
    def test_name_class_and_file_follow_from_each_other(self, name: str) -> None:
        cls = pruner_class(name)
        assert cls.name == name
        assert cls.__name__.lower() == name.replace("-", "") + "pruner"
        assert cls.__module__.removeprefix("tango.methods.") in (name.split("-")[0], name.replace("-", "_"))

    def test_every_method_file_registers_something(self) -> None:
        folder = Path(tango.methods.__file__).parent
        files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "deprecated", "plan", "registry"}
        classes = registry._METHODS.values()
        assert files == {cls.__module__.rpartition(".")[2] for cls in classes}

    def test_public_package_offers_the_registry(self) -> None:
        assert tango.build_pruner is build_pruner
        assert tango.available_pruners is available_pruners
        assert tango.register is register


@pytest.mark.usefixtures("scratch_registry")
class TestRegister:
    def test_makes_a_class_known_by_its_name(self) -> None:
        assert register("keep-all-2")(KeepAllPruner) is KeepAllPruner
        assert KeepAllPruner.name == "keep-all-2"
        assert "keep-all-2" in available_pruners()
        assert build_pruner("keep-all-2", strength=0.7) == KeepAllPruner(strength=0.7)

    def test_taken_names_are_refused(self) -> None:
        with pytest.raises(ValueError, match="'tango' is already registered by TangoPruner"):
            register("tango")
        assert pruner_class("tango").__name__ == "TangoPruner"

    def test_options_without_a_default_are_refused(self) -> None:
        @dataclass(frozen=True, kw_only=True)
        class DemandingPruner(KeepAllPruner):
            size: int

        with pytest.raises(ValueError, match=r"option size of .*DemandingPruner needs a default"):
            register("demanding")(DemandingPruner)
        assert "demanding" not in available_pruners()

    @pytest.mark.parametrize("name", ["", "Tango", "my_method", "my method", "-x", "x-", "a--b", "a.b", "ünï", "x\n"])
    def test_bad_names_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="lower-case words joined by hyphens, got "):
            register(name)


class TestBuild:
    @pytest.mark.parametrize("name", available_pruners())
    def test_builds_the_class_of_that_name(self, name: str) -> None:
        pruner = build_pruner(name, retention_ratio=0.2)
        assert type(pruner) is pruner_class(name)
        assert pruner.retention_ratio == 0.2

    @pytest.mark.parametrize("function", [build_pruner, pruner_class])
    def test_unknown_methods_are_refused_with_the_known_ones(self, function: object) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown method 'tangoo'\. Did you mean 'tango'\?") as caught:
            function("tangoo")  # type: ignore[operator]
        assert all(name in str(caught.value) for name in available_pruners())
        assert isinstance(caught.value, TangoError)
        assert isinstance(caught.value, ValueError)

    def test_a_name_like_no_other_gets_no_guess(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown method 'qqqq'") as caught:
            build_pruner("qqqq")
        assert "Did you mean" not in str(caught.value)

    def test_unknown_options_are_refused_with_the_known_ones(self) -> None:
        with pytest.raises(
            UnknownNameError, match=r"unknown option of uniform 'alpha'\. Known: exact_budget, retention"
        ):
            build_pruner("uniform", alpha=1.5)

    @pytest.mark.parametrize("attribute", ["needs", "paper", "budget_rule"])
    def test_facts_about_a_method_are_no_options(self, attribute: str) -> None:
        with pytest.raises(UnknownNameError, match=f"unknown option of tango '{attribute}'"):
            build_pruner("tango", **{attribute: None})

    def test_options_out_of_range_are_refused(self) -> None:
        with pytest.raises(BudgetError):
            build_pruner("uniform", retention_ratio=2.0)


class TestPrunerChecksItsMethod:
    """A method that breaks the contract is stopped, not passed on to a model."""

    @pytest.mark.parametrize("indices", [[3, 1], [2, 2]])
    def test_indices_out_of_order(self, indices: list[int]) -> None:
        with pytest.raises(AssertionError, match="indices that do not strictly increase"):
            self.broken(indices, len(indices))

    @pytest.mark.parametrize(("indices", "rows"), [([], 0), ([0, 1], 3)])
    @pytest.mark.usefixtures("unchecked_annotations")
    def test_nothing_kept_or_rows_that_do_not_match(self, indices: list[int], rows: int) -> None:
        with pytest.raises(AssertionError, match=rf"returned features \({rows}, 4\) for {len(indices)} indices"):
            self.broken(indices, rows)

    @staticmethod
    def broken(indices: list[int], rows: int) -> PrunedTokens:
        @dataclass(frozen=True, kw_only=True)
        class BrokenPruner(KeepAllPruner):
            name = "broken"

            def prune(self, tokens: VisualTokens) -> PrunedTokens:
                return PrunedTokens(
                    features=tokens.features[0, :rows], indices=torch.tensor(indices, dtype=torch.int64)
                )

        tokens = VisualTokens(features=torch.rand(1, 5, 4), grid=(1, 5), timestamps_s=torch.zeros(1))
        return BrokenPruner()(tokens)
