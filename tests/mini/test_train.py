"""Training in miniature: it repeats, it can be interrupted anywhere, and it learns something."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tango.errors import TangoError
from tango.mini.model import make_model
from tango.mini.recipe import Recipe
from tango.mini.train import train
from tango.mini.train_language import _plan, start_language
from tango.mini.train_vision import make_probes

TINY = Recipe(
    vision_steps=5,
    vision_batch=8,
    vision_clips=4,
    clips={6: 3, 8: 2},
    language_steps=6,
    language_tokens=400,
    questions=4,
    sizes={"vision_width": 32, "vision_layers": 1, "width": 32, "layers": 2},
)


class Interrupted(Exception):
    """In place of Ctrl-C."""


def run(folder, recipe=TINY, *, until: str | None = None):
    """Train with a state after every step; stop where the log says `until`."""

    def log(line: str) -> None:
        if until is not None and re.search(until, line):
            raise Interrupted

    return train(folder / "model", folder / "work", recipe, workers=0, every_s=0, log=log)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_repeats_bit_for_bit_also_when_interrupted(uninterrupted, tmp_path, monkeypatch):
    import tango.mini.train_language as language
    import tango.mini.train_vision as vision

    for module, after in ((vision, 3), (language, 2)):
        calls, original = [0], module.save_state

        def save(path, state, calls=calls, after=after, original=original):
            original(path, state)
            calls[0] += 1
            if calls[0] == after:
                raise Interrupted

        monkeypatch.setattr(module, "save_state", save)
        with pytest.raises(Interrupted):
            run(tmp_path)
        monkeypatch.setattr(module, "save_state", original)
        state = torch.load(tmp_path / "work" / f"{module.__name__.split('_')[1]}.pt", weights_only=True)
        assert state["step"] == after
    with pytest.raises(Interrupted):
        run(tmp_path, until="^done")
    run_again = load_file(tmp_path / "model" / "model.safetensors")
    assert run_again.keys() == uninterrupted.keys()
    assert all(torch.equal(run_again[name], uninterrupted[name]) for name in run_again)


def test_an_interruption_between_two_files_of_tokens_loses_nothing(uninterrupted, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, until="encode 6")
    run(tmp_path)
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(again[name], uninterrupted[name]) for name in again)


def test_another_seed_gives_another_model(uninterrupted, tmp_path):
    run(tmp_path, replace(TINY, seed=1))
    other = load_file(tmp_path / "model" / "model.safetensors")
    assert [name for name in other if torch.equal(other[name], uninterrupted[name]) and other[name].std() > 0] == []


def test_the_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(TangoError, match="exists already"):
        run(tmp_path)
    (tmp_path / "model").rmdir()
    with pytest.raises(Interrupted):
        run(tmp_path, until=".")
    with pytest.raises(TangoError, match=r"another recipe \(they differ in vision_steps\)"):
        run(tmp_path, replace(TINY, vision_steps=9))
    (tmp_path / "work" / "vision.pt").write_bytes(b"not a state")
    with pytest.raises(TangoError, match="cannot read"):
        run(tmp_path)


def test_pruned_input_is_never_trained_on():
    """Steps differ in frames, grid and spacing; a step's tokens are always whole grids."""
    import numpy as np

    plans = {_plan(Recipe(), step, np.random.default_rng(step))[:2] for step in range(Recipe().language_steps)}
    assert {frames for frames, _ in plans} == set(Recipe().clips)
    assert {side for _, side in plans} == {4, 5, 7}


def test_the_start_matches_equal_things_and_copies_what_it_finds():
    model = make_model(0, **TINY.sizes)
    start_language(model, make_probes(model), seed=0)
    for layer in model.model.language_model.layers:
        a = layer.self_attn
        heads, width = a.q_proj.out_features // a.head_dim, a.head_dim
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            shared = slice(head // 2 * width, (head // 2 + 1) * width)
            assert torch.equal(a.q_proj.weight[rows], a.k_proj.weight[shared])
            assert torch.allclose(a.o_proj.weight[:, rows], 0.4 * a.v_proj.weight[shared].T)
