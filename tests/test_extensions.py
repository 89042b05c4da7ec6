"""Other people's packages: found by entry points, imported by name, left out where they are broken."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tango
from tango import extensions
from tango.cli import main
from tango.errors import TangoError, UnknownNameError, UnsupportedModelError
from tango.evaluation import MethodConfig
from tango.lab.reliability import workers
from tango.methods import registry
from tango.models import base
from tango.toy import tiny_model, write_clip
from tests import tiny
from tests.foreign import FIRST, install_example, write_coarse, write_package, write_scorer

ROOT = Path(__file__).parents[1]
BROKEN = "import a_module_that_is_not_there\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from; what they register is gone after the test, as in a new process."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))
    monkeypatch.setattr(extensions, "_LEFT_OUT", {})
    monkeypatch.setattr(extensions, "_IMPORTED", {})
    monkeypatch.setattr(extensions, "_PACKAGES", set())
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


class TestEntryPoints:
    def test_add_names(self, site: Path) -> None:
        write_package(site, "first_tokens", FIRST)
        before = set(registry._METHODS)
        assert set(tango.available_methods()) - before == {"first"}
        assert "first" in tango.available_pruners()
        assert MethodConfig(method="first", options={"retention_ratio": 0.3}).label == "first-r0.3"

    @pytest.mark.parametrize("find", [registry.method_class, registry.pruner_class, tango.build_pruner])
    def test_are_loaded_by_whoever_asks_for_a_name_first(self, site: Path, find: Callable[[str], object]) -> None:
        write_package(site, "first_tokens", FIRST)
        find("first")
        assert "first_tokens" in sys.modules

    def test_are_not_loaded_for_a_name_that_is_known(self, site: Path) -> None:
        write_package(site, "first_tokens", FIRST)
        write_package(site, "a_family", "", "tango.models")
        tango.build_pruner("tango")
        base.adapter_class("llava_onevision")
        assert not {"first_tokens", "a_family"} & set(sys.modules)

    def test_are_loaded_once(self, site: Path) -> None:
        log = site / "log"
        write_package(site, "counted", f"with open({str(log)!r}, 'a') as log:\n    log.write('x')\n" + BROKEN)
        for _ in range(3):
            tango.available_methods()
        assert log.read_text() == "x"

    def test_of_another_group_are_left_alone(self, site: Path) -> None:
        write_package(site, "a_family", BROKEN, "tango.models")
        tango.available_methods()
        assert extensions._LEFT_OUT == {"tango.methods": ""}

    def test_may_ask_for_names_while_they_are_loaded(self, site: Path) -> None:
        write_package(site, "curious", "import tango\nassert 'tango' in tango.available_methods()\n" + FIRST)
        assert "first" in tango.available_methods()

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            (BROKEN, "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
            ("x = 1\nraise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
            ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
            ("def f(:\n", "SyntaxError: invalid syntax"),
            (FIRST.replace('"first"', '"tango"'), "method 'tango' is already registered by TangoPruner"),
        ],
        ids=["import", "error", "exit", "syntax", "taken name"],
    )
    def test_that_fail_are_named_in_one_line(
        self, site: Path, caplog: pytest.LogCaptureFixture, source: str, reason: str
    ) -> None:
        write_package(site, "broken_methods", source)
        write_package(site, "first_tokens", FIRST)
        with caplog.at_level(logging.WARNING):
            assert "first" in tango.available_methods()
        (line,) = caplog.messages
        assert line.startswith("tango: left out the package broken-methods: ")
        assert reason in line
        assert "\n" not in line
        with pytest.raises(UnknownNameError, match="unknown method 'brokn'") as error:
            tango.build_pruner("brokn")
        assert str(error.value).endswith(line.removeprefix("tango: "))
        assert tango.build_pruner("tango")

    def test_of_models_that_fail_are_named_where_one_is_missing(self, site: Path) -> None:
        write_package(site, "broken_models", BROKEN, "tango.models")
        with pytest.raises(UnsupportedModelError, match=r"no adapter .* left out the package broken-models: Module"):
            base.adapter_class("my_family")
        with pytest.raises(UnsupportedModelError, match=r"no adapter .* left out the package broken-models: Module"):
            tango.prune(torch.nn.Linear(1, 1))

    def test_of_saliency_that_fail_are_named_where_one_is_missing(self, site: Path) -> None:
        write_package(site, "broken_saliency", BROKEN, "tango.saliency")
        assert MethodConfig(method="tango", saliency="attn").label == "tango-r0.1-attn"
        assert "tango.saliency" not in extensions._LEFT_OUT
        with pytest.raises(UnknownNameError, match=r"unknown saliency 'mine'.* left out the package broken-saliency: "):
            MethodConfig(method="tango", saliency="mine")


class TestImport:
    """`--import PKG`; in this process, like a user's command otherwise."""

    @pytest.mark.parametrize("words", ["--import mine methods --json", "methods --json --import=mine"])
    def test_before_and_behind_the_command(self, site: Path, words: str, capsys) -> None:
        (site / "mine.py").write_text(FIRST)
        assert main(words.split()) == 0
        (found,) = [m for m in json.loads(capsys.readouterr().out) if m["name"] == "first"]
        assert found["summary"] == "Keep the first tokens."
        assert found["paper"]["title"] == "not published"

    def test_is_repeatable_and_takes_several(self, site: Path, capsys) -> None:
        for name in "abc":
            (site / f"{name}.py").write_text(FIRST.replace('"first"', f'"first-{name}"'))
        assert main(["methods", "--import", "a, b", "--import", "c", "--json"]) == 0
        assert {"first-a", "first-b", "first-c"} <= {m["name"] for m in json.loads(capsys.readouterr().out)}
        assert extensions.imported() == ["a", "b", "c"]

    def test_of_a_group_of_commands(self, site: Path, capsys) -> None:
        (site / "mine.py").write_text(FIRST)
        assert main(["mini", "--import", "mine", "evaluate", "--method", "frist"]) == 2
        assert "Did you mean 'first'?" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (None, "cannot import 'mine': ModuleNotFoundError: No module named 'mine'. Expected the name of a Python"),
            ("x = 1\nx.y\n", "cannot import 'mine': AttributeError: 'int' object has no attribute 'y' ("),
        ],
    )
    def test_that_fails_is_one_line(self, site: Path, capsys, source: str | None, message: str) -> None:
        if source is not None:
            (site / "mine.py").write_text(source)
        assert main(["methods", "--import", "mine"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"tango: error: {message}")
        assert said.err.count("\n") == 1
        assert source is None or f"{site / 'mine.py'}, line 2)" in said.err

    def test_whose_code_fails_can_be_told(self, site: Path) -> None:
        (site / "mine.py").write_text(FIRST.replace("x = tokens", "x = token"))
        extensions.import_packages("mine")
        tokens = tango.VisualTokens(features=torch.rand(1, 4, 8), grid=(2, 2), timestamps_s=torch.zeros(1))
        with pytest.raises(NameError) as error:
            tango.build_pruner("first")(tokens)
        assert extensions.owner(error.value) == "mine"
        with pytest.raises(UnknownNameError) as ours:
            tango.build_pruner("frist")
        assert extensions.owner(ours.value) is None

    def test_without_a_name_is_a_mistake(self, capsys) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(["methods", "--import"])
        assert "expected one argument" in capsys.readouterr().err

    def test_is_in_the_help_of_every_command(self, capsys) -> None:
        for command in ([], ["compare"], ["mini"], ["mini", "train"], ["bench", "methods"]):
            with pytest.raises(SystemExit, match="0"):
                main([*command, "--help"])
            assert "--import PKG" in capsys.readouterr().out

    def test_reaches_the_processes_of_benchmarks(self, site: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        (site / "mine.py").write_text(FIRST)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))
        small = ["--frames", "2", "--grid", "2x2", "--dim", "8", "--repeats", "1", "--device", "cpu"]
        assert main(["bench", "pruner", "--import", "mine", "--method", "first", *small]) == 0  # runs a child
        assert capsys.readouterr().out.startswith("first")
        seen: list[str] = []
        workers._begin(["mine"], seen.append, "ran")
        assert seen == ["ran"]
        with pytest.raises(TangoError, match="cannot import 'others'"):
            workers._begin(["others"], seen.append, "ran")


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    installed = install_example(tmp_path_factory.mktemp("example") / "site")
    path = os.pathsep.join([str(ROOT), str(installed)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TANGO_IMPORT": "not_read_by_the_command"}


class TestExample:
    """examples/tango-example, installed by pip, in processes of their own."""

    @staticmethod
    def run(environ: dict[str, str], *command: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "tango.cli", *map(str, command)]
        return subprocess.run(words, env=environ, capture_output=True, text=True)

    def test_methods_are_listed_beside_a_broken_package(self, environ: dict[str, str], tmp_path: Path) -> None:
        write_package(tmp_path, "broken_methods", BROKEN)
        environ = {**environ, "PYTHONPATH": os.pathsep.join([environ["PYTHONPATH"], str(tmp_path)])}
        done = self.run(environ, "methods", "--json")
        assert done.returncode == 0, done.stderr
        found = {method["name"]: method for method in json.loads(done.stdout)}
        assert {"centre", "scorer", "tango", "fastv"} <= set(found)
        assert found["scorer"]["options"]["weights"] == ""
        assert "coarse_onevision" in found["centre"]["models"]
        assert done.stderr.startswith("tango: left out the package broken-methods: ModuleNotFoundError: ")
        assert done.stderr.count("\n") == 1

    def test_compare_runs_its_methods_on_its_model(self, environ: dict[str, str], tmp_path: Path) -> None:
        model = tiny_model(tiny.tokenizer(), image_size=tiny.IMAGE_SIZE, width=32)
        write_coarse(tmp_path / "model", model, tiny.tokenizer())
        write_clip(tmp_path / "clip.mp4", num_frames=24, size=64)
        weights = write_scorer(tmp_path / "scorer.safetensors", dim=128)
        command = ["compare", tmp_path / "clip.mp4", "--model", tmp_path / "model", "--num-frames", "6", "--json"]
        methods = [
            "--methods",
            "centre,scorer,tango",
            "--saliency",
            "key-norm",
            "--option",
            f"scorer.weights={weights}",
        ]
        done = self.run(environ, *command, *methods, "--retention-ratio", "0.5")
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["grid"] == [2, 2]  # 8 x 8 patches, averaged 4 x 4
        assert record["tokens_before"] == 6 * 4
        assert record["saliency"] == "key-norm"
        kept = {method["method"]: method["tokens_after"] for method in record["methods"]}
        assert kept["centre"] == kept["scorer"] == 12
        assert 0 < kept["tango"] < 24
        assert record["methods"][1]["options"]["weights"] == str(weights)
