"""What other people's methods bring along is part of what an answer is on record under: weights, and source."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tango import extensions
from tango.commands.results import label, read
from tango.errors import OptionError, TangoError
from tango.evaluation import Answerer, MethodConfig, check_journal, identity
from tango.methods import registry
from tango.report.records import write_records
from tango.report.results import choose
from tests.evaluation.conftest import ask
from tests.foreign import EXAMPLE, FIRST, write_scorer

DIM = 128  # of the tiny model's features


@pytest.fixture(autouse=True)
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`first_tokens.py`, and the example's learned method, imported by name."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(extensions, "_IMPORTED", {})
    (tmp_path / "first_tokens.py").write_text(FIRST)
    for place in (tmp_path, EXAMPLE):
        monkeypatch.syspath_prepend(place)
    extensions.import_packages("first_tokens,tango_example.scorer")
    yield tmp_path / "first_tokens.py"
    for name in ("first_tokens", "tango_example", "tango_example.scorer"):
        del sys.modules[name]


def learned(weights: Path) -> MethodConfig:
    return MethodConfig(method="scorer", options={"retention_ratio": 0.5, "weights": str(weights)})


def test_a_learned_method_is_journalled_and_resumed(files: Path, tmp_path: Path) -> None:
    weights = write_scorer(tmp_path / "scorer.safetensors", DIM)
    for cached in (False, True):
        with Answerer(str(files / "llava-ov"), method=learned(weights), journal=tmp_path / "journal") as answerer:
            answer = answerer.answer(ask(files / "0.mp4"))
        assert (answer.error, answer.cached) == (None, cached)
        assert (answer.visual_tokens_before, answer.visual_tokens_after) == (96, 48)
    recorded = json.loads((tmp_path / "journal" / "config.json").read_text())
    assert recorded["method"]["options"]["weights"] == str(weights)
    assert set(recorded["content"]["weights"]) == {"scorer"}
    assert set(recorded["content"]["packages"]) == {"tango_example"}


def test_runs_of_other_weights_are_told_apart_without_the_file(tmp_path: Path) -> None:
    path, labels = tmp_path / "scorer.safetensors", []
    line = {"benchmark": "b", "question_id": 1, "video_id": "v", "correct": True}
    for seed in range(2):
        method = learned(write_scorer(path, DIM, seed=seed))
        labels.append(method.label.replace("-r0.5", ""))
        write_records(tmp_path / f"{seed}_records.jsonl", {"model": "m", "method": method.to_record()}, [line])
    for text in (None, "neither"):  # as it is now, and no weights at all
        if text is not None:
            path.write_text(text)
        runs = read(argparse.Namespace(results=[tmp_path])).runs
        assert len(choose(runs)[0]) == 2
        assert [label(run.method) for run in runs] == labels
        assert labels[0] != labels[1]


def test_weights_that_change_after_they_were_named_are_refused(tmp_path: Path) -> None:
    method = learned(write_scorer(tmp_path / "scorer.safetensors", DIM))
    assert method.to_record()["weights"] == method.content()["weights"]
    write_scorer(tmp_path / "scorer.safetensors", DIM, seed=1)
    with pytest.raises(OptionError, match="weights of scorer changed while this ran"):
        method.content()


def test_other_weights_in_the_same_file_are_refused(files: Path, tmp_path: Path) -> None:
    weights = write_scorer(tmp_path / "scorer.safetensors", DIM)
    with Answerer(str(files / "llava-ov"), method=learned(weights), journal=tmp_path / "journal"):
        pass
    check_journal(tmp_path / "journal", identity(str(files / "llava-ov"), learned(weights)))
    write_scorer(weights, DIM, seed=1)
    with pytest.raises(
        TangoError, match=r"answers of another configuration: got \{'content': \{'weights': \{'scorer': "
    ):
        check_journal(tmp_path / "journal", identity(str(files / "llava-ov"), learned(weights)))


def test_edited_source_is_refused(files: Path, tmp_path: Path, foreign: Path) -> None:
    method = MethodConfig(method="first", options={"retention_ratio": 0.5})
    with Answerer(str(files / "llava-ov"), method=method, journal=tmp_path / "journal"):
        pass
    with Answerer(str(files / "llava-ov"), method=method, journal=tmp_path / "journal"):
        pass
    foreign.write_text(FIRST + "# edited\n")
    with (
        pytest.raises(TangoError, match=r"got \{'content': \{'packages': \{'first_tokens': "),
        Answerer(str(files / "llava-ov"), method=method, journal=tmp_path / "journal"),
    ):
        pass


def test_our_own_methods_add_nothing(files: Path) -> None:
    assert MethodConfig(method="tango", layer_pruner="fastv-merge", layer_options={"layer": 1}).content() == {}
    assert MethodConfig(method="fastv").content() == {}
    assert set(identity(str(files / "llava-ov"), MethodConfig(method="tango"))["content"]) == {"checkpoint", "code"}
