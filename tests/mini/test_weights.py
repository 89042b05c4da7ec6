"""The published weights: small, loadable by name, and able to answer what they can see and only that."""

from __future__ import annotations

from itertools import chain

import pytest

import tango
from tango import mini
from tango.cli import main
from tango.mini.benchmark import clip_file
from tango.mini.evaluation import evaluate, summarise
from tango.models.loading import read_config

NUM_CLIPS = 4


@pytest.fixture(scope="module")
def loaded():
    return tango.load("tango-mini")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


def accuracy(loaded, clips, **options) -> float:
    records = chain.from_iterable(evaluate(*loaded, clips, range(NUM_CLIPS), **options))
    return summarise(list(records))["all"]["accuracy"]


def test_the_files_are_small_and_complete():
    files = {path.name: path.stat().st_size for path in mini.folder().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(files)
    assert sum(files.values()) < 10e6


def test_it_is_a_stock_llava_onevision_with_a_pooling_head(loaded):
    model, _ = loaded
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    assert model.pooling_head is not None
    assert read_config(mini.folder())[0].vision_config.vision_use_head


def test_it_answers_most_questions_and_none_without_the_video(loaded, clips):
    """Bounds are loose: there are few questions here. The model card has the real numbers."""
    seen, blank = accuracy(loaded, clips), accuracy(loaded, clips, control="blank")
    assert seen > 60
    assert blank < 45
    assert seen > blank + 25


def test_fewer_tokens_still_beat_guessing(loaded, clips):
    with tango.prune(loaded[0], "tango", retention_ratio=0.2):
        assert accuracy(loaded, clips) > 40


def test_the_command_line_knows_its_name(clips, capsys):
    assert main(["answer", str(clip_file(clips, 0)), "what is the letter?", "--model", "tango-mini"]) == 0
    assert capsys.readouterr().out.split()[0].isalpha()
