"""Every public name shows a call, and that call gives what its docstring says: the examples are run by doctest."""

from __future__ import annotations

import doctest
import inspect
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import tango
from tango import extensions
from tango.methods import registry
from tango.mini import clip_file
from tango.models import base
from tango.ops import saliency
from tests.layer_tokens import random_prompt
from tests.synthetic import video_tokens

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PACKAGES = ("tango", "tango.evaluation", "tango.mini", "tango.report")
ROOT = Path(tango.__file__).parent


def public_names() -> list[str]:
    names = [f"{package}.{name}" for package in PACKAGES for name in import_module(package).__all__]
    return [name for name in names if inspect.isclass(found(name)) or inspect.isroutine(found(name))]


def found(name: str) -> Any:
    package, _, attribute = name.rpartition(".")
    return getattr(import_module(package), attribute)


def examples() -> dict[str, doctest.DocTest]:
    """Of all docstrings in Tango, public or not."""
    files = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for path in files]
    finder = doctest.DocTestFinder()
    tests = [test for name in names for test in finder.find(import_module(name), name) if test.examples]
    return {test.name: test for test in tests}


EXAMPLES = examples()


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return tango.load("tango-mini")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_file(tmp_path_factory.mktemp("clips"), 0)


@pytest.fixture
def names(loaded: tuple[Any, Any], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What examples may use beside the names of their own module: a model with its processor, visual tokens of 8 frames
    of 6 x 6, a prompt at decoder layer 2, and the file clip.mp4."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))
    monkeypatch.setattr(saliency, "_SALIENCY", dict(saliency._SALIENCY))
    monkeypatch.setattr(extensions, "_IMPORTED", dict(extensions._IMPORTED))
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    model, processor = loaded
    tokens, prompt = video_tokens(), random_prompt()
    return {"tango": tango, "torch": torch, "model": model, "processor": processor, "tokens": tokens, "prompt": prompt}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name: str, names: dict[str, Any]) -> None:
    test = EXAMPLES[name]
    test.globs = {**test.globs, **names}
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", public_names())
def test_a_public_name_has_an_example(name: str) -> None:
    thing = found(name)
    text = inspect.getdoc(thing) or ""
    assert "Example:" in text.splitlines(), "the docstring has no Example:"
    code = [example.source for example in doctest.DocTestParser().get_examples(text)]
    assert any(thing.__name__ in line for line in code), "it shows another call"
