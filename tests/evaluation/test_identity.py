"""What an answer is on record under: whatever can change an answer changes that, and an old answer is not given out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tango.evaluation.answerer
import tango.evaluation.records
from tango.errors import TangoError
from tango.evaluation import Answerer, MethodConfig, Question
from tango.video.reading import read_video
from tests.evaluation.conftest import ask

TANGO = MethodConfig(method="tango", options={"retention_ratio": 0.3})


@pytest.fixture(scope="module")
def own(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and clips that the tests of this module may change."""
    folder = tmp_path_factory.mktemp("identity")
    for name in ("llava-ov", "qwen2.5-vl"):
        shutil.copytree(files / name, folder / name)
    shutil.copytree(folder / "llava-ov" / "siglip", folder / "siglip")
    return folder


def recorded(own: Path, journal: Path, model: str = "llava-ov", **options: Any) -> dict[str, Any]:
    """The configuration that a run with these options leaves in its journal."""
    options = {"method": TANGO, **options}
    with Answerer(str(own / model), journal=journal, **options):
        return json.loads((journal / "config.json").read_text())


def refused(own: Path, journal: Path, model: str = "llava-ov", **options: Any) -> str:
    with pytest.raises(TangoError, match="another configuration") as error:
        recorded(own, journal, model, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": MethodConfig(method="divprune", options={"retention_ratio": 0.3})}, "'method': 'divprune'"),
        ({"method": MethodConfig(method="tango", options={"retention_ratio": 0.2})}, "'retention_ratio': 0.2"),
        ({"method": MethodConfig(method="tango", options={"retention_ratio": 0.3, "alpha": 2.5})}, "'alpha': 2.5"),
        ({"method": replace(TANGO, saliency="attn")}, "'saliency': 'attn'"),
        ({"method": replace(TANGO, positions="kept")}, "'positions': 'kept'"),
        ({"method": replace(TANGO, layer_pruner="fastv-merge", layer_options={"layer": 1})}, "'layer_pruner'"),
        ({"num_frames": 9}, "'num_frames': 9"),
        ({"dtype": "bfloat16"}, "'dtype': 'bfloat16'"),
        ({"attn_implementation": "eager"}, "'attn_implementation': 'eager'"),
        ({"video_backend": "decord"}, "'video_backend': 'decord'"),
        ({"time_instruction": "frames"}, "'time_instruction': 'frames'"),
        ({"static_cache": True}, "'static_cache': True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_setting_counts(own: Path, tmp_path_factory: pytest.TempPathFactory, options, named: str) -> None:
    journal = tmp_path_factory.getbasetemp() / "identity-settings"
    if not journal.is_dir():
        recorded(own, journal)
    assert named in refused(own, journal, **options)


def test_limits_of_a_frames_size_count(own: Path, tmp_path: Path) -> None:
    small = MethodConfig(method="uniform", options={"retention_ratio": 0.5})
    recorded(own, tmp_path, "qwen2.5-vl", method=small)
    for name in ("min_pixels", "max_pixels"):
        assert f"'{name}': 3136" in refused(own, tmp_path, "qwen2.5-vl", method=small, **{name: 3136})


def replaced_weights(folder: Path) -> None:
    """Other values of the same names, shapes and types: the file has the same header and size."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    tensors[name][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "siglip/model.safetensors"])
def test_another_content_of_a_checkpoint_counts(own: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(own / "llava-ov", tmp_path / "llava-ov")
    recorded(tmp_path, tmp_path / "journal")
    path = tmp_path / "llava-ov" / name
    size = path.stat().st_size
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 999}))
    elif "siglip" in name:
        replaced_head(path)
    else:
        replaced_weights(path.parent)
    assert path.suffix == ".json" or path.stat().st_size == size
    assert "'checkpoint': " in refused(tmp_path, tmp_path / "journal")
    recorded(tmp_path, tmp_path / "another journal")


def replaced_head(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("head.probe"))
    save_file({**tensors, name: tensors[name] + 1}, path, metadata={"format": "pt"})


def test_the_pooling_head_of_another_folder_counts(own: Path, tmp_path: Path) -> None:
    siglip = tmp_path / "siglip"
    shutil.copytree(own / "siglip", siglip)
    first = recorded(own, tmp_path / "journal", siglip=str(siglip))
    again = recorded(own, tmp_path / "journal", siglip=str(siglip))
    assert first == again
    replaced_head(siglip / "model.safetensors")
    message = refused(own, tmp_path / "journal", siglip=str(siglip))
    assert "'pooling_head': " in message
    assert "'checkpoint'" not in message


@pytest.mark.parametrize("package", ["tango", "torch", "transformers", "av"])
def test_other_versions_are_refused(own: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recorded(own, tmp_path)
    versions = {**tango.evaluation.records.versions(), package: "0.0"}
    monkeypatch.setattr(tango.evaluation.records, "versions", lambda: versions)
    message = refused(own, tmp_path)
    assert f"got {{'versions': {{'{package}': '0.0'}}}}, there" in message
    assert "Use another folder, or remove this one to start over" in message
    assert json.loads((tmp_path / "config.json").read_text()) == config  # as it was


def test_other_code_of_the_same_version_is_refused(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(own, tmp_path)
    monkeypatch.setattr(tango.evaluation.records, "of_code", lambda: "changed")
    assert "'code': 'changed'" in refused(own, tmp_path)


def test_python_and_readers_that_are_not_used_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"tango": "1", "python": "3", "torch": "2", "av": "15", "decord": "0.6", "torchcodec": "0.7"}
    monkeypatch.setattr(tango.evaluation.records, "versions", lambda: found)
    behind = tango.evaluation.records.versions_behind
    assert behind("auto") == behind("pyav") == {"tango": "1", "torch": "2", "av": "15"}
    assert behind("decord") == {"tango": "1", "torch": "2", "decord": "0.6"}


class TestQuestion:
    @pytest.mark.parametrize(
        "change",
        [
            {"prefill": "A"}, {"num_frames": 8}, {"max_new_tokens": 1}, {"generate_options": {"num_beams": 2}},
            {"generate_options": {"until": ["."]}}, {"text": "Why?"}, {"system": "Be brief."},
        ],
        ids=str,
    )  # fmt: skip
    def test_everything_that_is_asked_counts(self, files: Path, change: dict[str, Any]) -> None:
        change = dict(change)
        question = ask(files / "0.mp4", change.pop("text", "What happens?"))
        if system := change.pop("system", None):
            question = replace(question, messages=[{"role": "system", "content": system}, *question.messages])
        assert replace(question, **change).key != ask(files / "0.mp4").key

    def test_a_video_counts_by_its_content(self, files: Path, tmp_path: Path) -> None:
        shutil.copy(files / "0.mp4", tmp_path / "moved.mp4")
        assert ask(tmp_path / "moved.mp4").key == ask(files / "0.mp4").key
        shutil.copy2(files / "3.mp4", tmp_path / "moved.mp4")
        assert ask(tmp_path / "moved.mp4").key == ask(files / "3.mp4").key != ask(files / "0.mp4").key

    def test_frames_in_memory_count_by_their_values(self, files: Path) -> None:
        def key(frames: Any) -> str:
            return Question(messages=[{"role": "user", "content": [{"type": "video", "video": frames}]}]).key

        clips = [read_video(files / f"{i}.mp4", num_frames=3) for i in (0, 0, 3)]
        assert key(clips[0]) == key(clips[1]) != key(clips[2])

    def test_missing_videos_count_by_their_names(self, files: Path) -> None:
        assert ask(files / "gone.mp4").key == ask(files / "gone.mp4").key != ask(files / "gone2.mp4").key


def test_a_replaced_video_is_asked_about_again(own: Path, files: Path, tmp_path: Path) -> None:
    clip, journal = tmp_path / "clip.mp4", tmp_path / "journal"
    texts, cached = [], []
    for source in ("0.mp4", "0.mp4", "3.mp4", "0.mp4"):
        shutil.copy2(files / source, clip)
        with Answerer(str(own / "llava-ov"), method=TANGO, journal=journal) as answerer:
            answer = answerer.answer(ask(clip))
        texts.append(answer.text)
        cached.append(answer.cached)
    assert cached == [False, True, False, True]  # the first answer still holds for the first content
    with Answerer(str(own / "llava-ov"), method=TANGO) as answerer:
        assert texts == [answerer.answer(ask(files / name)).text for name in ("0.mp4", "0.mp4", "3.mp4", "0.mp4")]


def test_a_video_that_changes_while_it_is_read_is_no_answer(
    own: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(files / "0.mp4", clip)
    with Answerer(str(own / "llava-ov"), journal=tmp_path / "journal", workers=0) as answerer:
        prepare = answerer._prepare

        def slowly(question: Question) -> Any:
            prepared = prepare(question)
            shutil.copy(files / "3.mp4", clip)
            return prepared

        monkeypatch.setattr(answerer, "_prepare", slowly)
        first, second = answerer.answer(ask(clip)), answerer.answer(ask(clip))
    assert first.error == "OSError: a video of this question changed while it was read; ask again once it is complete"
    assert second.error is None
