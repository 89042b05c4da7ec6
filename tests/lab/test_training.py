"""Training in miniature: the recipe decides it, and it can be interrupted anywhere."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tango.errors import TangoError
from tango.lab.training.language import _plan, _questions, language_loss, start_language, training_clip
from tango.lab.training.recipe import Recipe
from tango.lab.training.train import train
from tango.lab.training.vision import make_probes, see
from tango.mini.model import make_model

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


def apart(some, other, start) -> float:
    """How far two runs' weights lie apart, as a share of what training moved them; of both stages the larger."""
    shares = []
    for part in ("vision_tower", "language_model"):
        names = [name for name in start if part in name]
        between, moved = (
            torch.cat([(some[name] - weights[name]).flatten() for name in names]).norm() for weights in (other, start)
        )
        shares.append(float(between / moved))
    return max(shares)


@pytest.fixture(scope="module")
def start():
    """Weights before each stage's first step; those of the language model depend on the first stage."""
    model = make_model(TINY.seed, **TINY.sizes).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        trained = run(Path(folder), replace(TINY, language_steps=0)).state_dict()
    return {name: trained[name] if "language_model" in name else model[name] for name in model}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole")).state_dict()


def test_an_interrupted_run_comes_to_the_same_weights(uninterrupted, start, tmp_path, monkeypatch):
    """To within rounding, which processors differ in. A step too few or too many, or in other order, is above 10 %."""
    import tango.lab.training.language as language
    import tango.lab.training.vision as vision

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
        state = torch.load(tmp_path / "work" / f"{module.__name__.rpartition('.')[2]}.pt", weights_only=True)
        assert state["step"] == after
    again = run(tmp_path)
    assert apart(again.state_dict(), uninterrupted, start) < 0.01
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert {len(written), len(uninterrupted)} == {len(again.state_dict())}


def test_an_interruption_between_two_files_of_tokens_loses_nothing(uninterrupted, start, tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, until="encode 6")
    assert apart(run(tmp_path).state_dict(), uninterrupted, start) < 0.01


def test_a_step_less_or_another_seed_is_another_model(uninterrupted, start, tmp_path):
    shorter = run(tmp_path / "shorter", replace(TINY, language_steps=TINY.language_steps - 1)).state_dict()
    assert apart(uninterrupted, shorter, start) > 0.1
    other = run(tmp_path / "other", replace(TINY, seed=1)).state_dict()
    assert [n for n in other if torch.equal(other[n], uninterrupted[n]) and other[n].std() > 0] == []


def test_training_does_not_depend_on_where_tensors_lie_in_memory():
    """The same loss and gradients when every weight lies four bytes further; to within what rounding can do."""
    frames = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clips, gradients = [training_clip(TINY, 8, i) for i in range(2)], []
    for offset in (0, 1):
        model = make_model(0, **TINY.sizes)
        for weight in model.parameters():
            place = torch.empty(weight.numel() + offset)[offset:].view(weight.shape)
            weight.data = place.copy_(weight.data)
        tokens = see(model, frames)[0].flatten(0, 1).expand(2, -1, -1)
        questions = [_questions(clip, 4, np.random.default_rng(0)) for clip in clips]
        language_loss(model, tokens, torch.ones(2), questions)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6 * float(gradients[0].abs().max()))


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
