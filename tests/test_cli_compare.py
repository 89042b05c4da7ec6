"""`tango compare`: one encoding, many methods, on real files; and the pictures that it draws."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tango.cli import main
from tango.commands import compare
from tango.containers import PrunedTokens, VisualTokens
from tango.errors import MissingSignalError
from tango.methods import TangoPruner, available_layer_pruners, available_pruners
from tango.models import load
from tango.models.llava_onevision import LlavaOnevisionAdapter
from tango.report.figures import DROPPED, KEPT, MERGED, contact_sheet, png, shade, thumbnails
from tango.runtime.answering import prepare
from tango.runtime.pruning import prune
from tango.toy import write_checkpoint, write_clip
from tango.video.reading import read_video
from tests import tiny, tiny_qwen

BLIND = [name for name in available_pruners() if name != "cdpruner"]  # they do not look at the question


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_checkpoint(folder / "llava_onevision", image_size=tiny.IMAGE_SIZE, width=32)
    video = tiny.llava_video()
    video.save_pretrained(folder / "llava_video")
    tiny.tokenizer().save_pretrained(folder / "llava_video")
    for family in ("qwen2_5_vl", "qwen3_vl"):
        tiny_qwen.model(family).save_pretrained(folder / family)
        tiny_qwen.tokenizer().save_pretrained(folder / family)
    write_clip(folder / "clip.mp4", num_frames=24, size=64)
    return folder


def tango(files: Path, *options: str, model: str = "llava_onevision", command: str = "compare") -> int:
    base = [command, str(files / "clip.mp4"), "--model", str(files / model), "--num-frames", "6"]
    return main([*base, *options])


@pytest.fixture(scope="module")
def written(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "new" / "folder"
    assert tango(files, "--retention-ratio", "0.25", "--repeats", "2", "--output", str(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def record(written) -> dict:
    return json.loads((written / "compare.json").read_text())


def test_every_method_is_compared_by_default(record):
    assert [m["method"] for m in record["methods"]] == BLIND
    assert list(record["not_compared"]) == ["cdpruner", *available_layer_pruners()]
    assert "intra-LLM" in record["not_compared"]["fastv-merge"]
    assert "fits the question; give one with --question" in record["not_compared"]["cdpruner"]
    assert record["tokens_before"] == 96
    assert set(record["stages_ms"]) == {"read", "preprocess", "tower", "project", "signals"}


@pytest.mark.parametrize("method", BLIND)
def test_a_method_keeps_what_it_would_keep_alone(files, record, capsys, method):
    """Signals that others want make no difference."""
    options = ["--json", "--retention-ratio", "0.25", "--saliency", "p-attn", "--method", method]
    assert tango(files, *options, command="inspect") == 0
    alone = json.loads(capsys.readouterr().out)
    together = next(m for m in record["methods"] if m["method"] == method)
    assert together["indices"] == alone["indices"]
    assert together["options"] == alone["options"]
    assert (together["tokens_after"], together["share"]) == (len(alone["indices"]), len(alone["indices"]) / 96)


def test_times_are_medians_of_the_repeats(record):
    for method in record["methods"]:
        assert 0 < method["prune_min_ms"] <= method["prune_ms"] <= method["prune_max_ms"]
        assert method["prune_ms"] == pytest.approx((method["prune_min_ms"] + method["prune_max_ms"]) / 2)  # of two


def test_overlap_is_the_jaccard_index(record):
    kept = [set(m["indices"]) for m in record["methods"]]
    expected = [[len(a & b) / len(a | b) for b in kept] for a in kept]
    np.testing.assert_allclose(record["overlap"], expected, rtol=1e-12)
    assert compare.overlap([torch.tensor([0, 1]), torch.tensor([1, 2, 3])], 5) == [[1, 0.25], [0.25, 1]]


def test_the_video_is_encoded_once_and_methods_run_as_often_as_asked(files, monkeypatch):
    calls = {"encode_videos": 0, "prune": 0}

    def count(owner, name):
        stock = getattr(owner, name)

        def counted(*args):
            calls[name] += 1
            return stock(*args)

        monkeypatch.setattr(owner, name, counted)

    count(LlavaOnevisionAdapter, "encode_videos")
    count(TangoPruner, "prune")
    assert tango(files, "--methods", "tango,uniform", "--repeats", "4") == 0
    assert calls == {"encode_videos": 1, "prune": 5}  # one of them is the warm-up


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_video"])
def test_other_families(files, capsys, tmp_path, family):
    options = ["--saliency", "attn", "--json", "--repeats", "1", "--output", str(tmp_path)]
    assert tango(files, *options, model=family) == 0
    result = json.loads(capsys.readouterr().out)
    assert [m["method"] for m in result["methods"]] == BLIND
    steps = len(result["timestamps_s"])
    assert steps == (6 if family == "llava_video" else 3)
    assert len(result["frame_timestamps_s"]) == 6  # on the sheets there are all frames
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == BLIND


def test_frames_that_share_their_tokens_are_shaded_alike(files, capsys, tmp_path, monkeypatch):
    seen = []
    stock = compare.figures.contact_sheet
    monkeypatch.setattr(
        compare.figures,
        "contact_sheet",
        lambda tiles, states, *rest: seen.append(states) or stock(tiles, states, *rest),
    )
    options = ["--methods", "random", "--json", "--repeats", "1", "--output", str(tmp_path)]
    assert tango(files, *options, model="qwen2_5_vl") == 0
    result = json.loads(capsys.readouterr().out)
    (states,) = seen
    assert np.array_equal(states[0::2], states[1::2])
    assert np.flatnonzero(states[0::2] == KEPT).tolist() == result["methods"][0]["indices"]


def test_exact_budget_and_options_of_single_methods(files, capsys):
    options = ["--retention-ratio", "0.3", "--exact-budget", "--methods", "vidcom2, tango,fastvid,holitom,visionzip"]
    assert tango(files, *options, "--option", "tango.alpha=2", "--option", "fastvid.retention-ratio=0.5", "--json") == 0
    methods = {m["method"]: m for m in json.loads(capsys.readouterr().out)["methods"]}
    assert list(methods) == ["vidcom2", "tango", "fastvid", "holitom", "visionzip"]
    assert {name: m["tokens_after"] for name, m in methods.items()} == dict.fromkeys(methods, 29) | {"fastvid": 48}
    assert methods["tango"]["options"]["alpha"] == 2


def test_text_has_a_line_per_method_and_a_matrix(files, capsys):
    assert tango(files, "--methods", "uniform,tango,uniform,fastv-merge", "--retention-ratio", "0.25") == 0
    captured = capsys.readouterr()
    blocks = captured.out.strip().split("\n\n")
    assert "96 visual tokens (6 x 4 x 4)" in blocks[0]
    table, matrix = ([line.split() for line in block.splitlines()[2:]] for block in blocks[1:3])
    assert table[0][:4] == ["uniform", "24", "25.0", "%"]
    assert [row[:2] for row in matrix] == [["1", "uniform"], ["2", "tango"]]
    assert (matrix[0][2], matrix[1][3]) == ("1.00", "1.00")
    assert matrix[0][3] == matrix[1][2] != "1.00"
    assert blocks[3].startswith("not compared\nfastv-merge: is intra-LLM")
    record = {"not_compared": {"a": "no", "b": "never", "c": "no"}}
    shared = {"video": "v", "tokens_before": 4, "timestamps_s": [0.0], "grid": [2, 2], "stages_ms": {}, "repeats": 1}
    text = compare.format_record({**shared, **record, "methods": [], "overlap": []})
    assert text.endswith("not compared\na, c: no\nb: never")
    assert "3/3" in captured.err  # progress


def test_a_method_that_refuses_these_tokens_is_listed(files, capsys, monkeypatch):
    def refuse(*_):
        raise MissingSignalError("not these")

    monkeypatch.setattr(TangoPruner, "prune", refuse)
    assert tango(files, "--methods", "tango,uniform", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [m["method"] for m in result["methods"]] == ["uniform"]
    assert result["not_compared"] == {"tango": "not these"}
    assert tango(files, "--methods", "tango", "--json") == 2
    assert "none of the methods can be compared. tango: not these" in capsys.readouterr().err


BEFORE_LOADING = {
    "unknown method": (["--methods", "tango,unifrom"], "unknown method 'unifrom'. Did you mean 'uniform'?"),
    "empty name": (["--methods", "tango,"], "unknown method ''"),
    "ratio": (["--retention-ratio", "0"], "must lie in (0, 1]"),
    "repeats": (["--repeats", "0"], "--repeats must be at least 1"),
    "option without method": (["--option", "alpha=2"], "METHOD.NAME=VALUE, got 'alpha=2'"),
    "option without value": (["--option", "tango.alpha"], "NAME=VALUE, got 'tango.alpha'"),
    "option that is no number": (["--option", "tango.alpha=[1"], "alpha must be a number, got '[1'"),
    "option of another": (["--methods", "uniform", "--option", "tango.alpha=2"], "unknown method to compare 'tango'"),
    "unknown option": (["--option", "tango.alhpa=2"], "unknown option of tango 'alhpa'"),
    "output": (["--output", __file__], "--output needs a folder"),
}


@pytest.mark.parametrize(("options", "message"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_mistakes_show_before_the_model_is_loaded(files, capsys, monkeypatch, options, message):
    monkeypatch.setattr(compare, "load_model", lambda *_: pytest.fail("loaded"))
    assert tango(files, *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("family", ["llava_onevision", "llava_video", "qwen2_5_vl"])
def test_methods_inside_the_llm_are_compared_by_a_question(files, capsys, tmp_path, family):
    options = ["--question", "What?", "--retention-ratio", "0.7", "--saliency", "attn", "--repeats", "1", "--json"]
    names = ["--methods", "uniform,fastv,dart,fastv-merge", "--option", "fastv.layer=1", "--option", "dart.layer=1"]
    assert tango(files, *options, *names, "--output", str(tmp_path), model=family) == 0
    result = json.loads(capsys.readouterr().out)
    assert [m["method"] for m in result["methods"]] == ["uniform", "fastv", "dart"]
    assert "layer must lie in" in result["not_compared"]["fastv-merge"]
    before = result["tokens_before"]
    for method in result["methods"][1:]:
        indices = method["indices"]
        assert indices == sorted(set(indices))
        assert 0 < len(indices) < before
        assert indices[-1] < before
        assert method["prune_ms"] is None
        assert (tmp_path / f"{method['method']}.png").is_file()
    model, processor = load(str(files / family), siglip=None)
    video = read_video(files / "clip.mp4", num_frames=6)
    with prune(model, "fastv", saliency="attn", retention_ratio=0.7, layer=1) as pruning, torch.no_grad():
        model(**prepare(processor, video, "What?"))
    frames, cells = (x.tolist() for x in pruning.stats.layer.places[0])
    (T, N), (H, W) = (len(result["timestamps_s"]), before // len(result["timestamps_s"])), result["grid"]
    line = W + 1 if family == "llava_video" else W  # with the newline
    tokens = [(t, c // line, c % line) for t, c in zip(frames, cells, strict=True) if t < T and c % line < W]
    fastv = next(m for m in result["methods"] if m["method"] == "fastv")
    assert fastv["indices"] == [t * N + row * W + column for t, row, column in tokens]
    assert H * W == N


@pytest.mark.parametrize("family", ["llava_onevision", "llava_video", "qwen3_vl"])
def test_a_method_that_looks_at_the_question_keeps_what_it_keeps_in_an_answer(files, capsys, family):
    shared = ["--retention-ratio", "0.5", "--saliency", "attn", "--repeats", "1", "--json", "--methods", "cdpruner"]
    found = []
    for question in ("What?", "What color is the second one?"):
        assert tango(files, "--question", question, *shared, model=family) == 0
        found.append(json.loads(capsys.readouterr().out)["methods"][0]["indices"])
    assert found[0] != found[1]
    model, processor = load(str(files / family), siglip=None)
    inputs = prepare(processor, read_video(files / "clip.mp4", num_frames=6), "What?")
    with prune(model, "cdpruner", saliency="attn", retention_ratio=0.5) as pruning, torch.no_grad():
        (mask,) = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).videos.keep_masks
    if family == "llava_video":  # of each row, the last placeholder is a newline
        mask = mask.unflatten(0, (-1, 5))[:, :4].flatten()
    assert mask.sum() >= len(found[0])
    assert found[0] == [i for i, kept in enumerate(mask[: 96 if family != "qwen3_vl" else None].tolist()) if kept]


def test_nothing_to_compare_says_why(files, capsys):
    assert tango(files, "--methods", "fastv,fastv-merge", model="qwen2_5_vl") == 2
    error = capsys.readouterr().err
    assert "fastv: is intra-LLM" in error
    assert "fastv-merge: is intra-LLM" in error


class TestPictures:
    def test_there_is_one_per_method_and_no_leftover(self, written):
        expected = ["compare.json", *(f"{name}.png" for name in BLIND)]
        assert sorted(os.listdir(written)) == sorted(expected)

    def test_pixels_are_the_same_every_time(self, files, written, tmp_path):
        options = ["--methods", "tango,random", "--retention-ratio", "0.25", "--repeats", "1"]
        assert tango(files, *options, "--output", str(tmp_path)) == 0
        for name in ("tango.png", "random.png"):
            assert (tmp_path / name).read_bytes() == (written / name).read_bytes()

    def test_kept_places_are_bright_and_all_others_are_not(self, files, written, record):
        """The sheet's tiles, cut out again, are the frames where tokens are kept, and nowhere else."""
        frames = read_video(files / "clip.mp4", num_frames=6).frames.numpy()
        tiles = thumbnails(frames, (4, 4))
        assert tiles.shape == (6, 192, 192, 3)
        sheet = np.asarray(Image.open(written / "tango.png"))
        first = 6 + 2 * 18  # below the caption
        states = np.zeros(96, dtype=bool)
        states[next(m for m in record["methods"] if m["method"] == "tango")["indices"]] = True
        for i, kept in enumerate(states.reshape(6, 4, 4)):
            y, x = first + (i // 3) * (192 + 18 + 6), 6 + (i % 3) * (192 + 6)
            cut = sheet[y : y + 192, x : x + 192]
            same = (cut == tiles[i]).all(axis=-1).reshape(4, 48, 4, 48).mean(axis=(1, 3))
            assert (same[kept] == 1).all()
            assert (same[~kept] < 0.1).all()

    def test_states_are_told_apart_even_where_the_frame_is_black(self):
        black = np.zeros((6, 9, 3), dtype=np.uint8)
        pixels = [
            shade(black, np.full((2, 3), state, dtype=np.uint8))[0, 0].tolist() for state in (DROPPED, MERGED, KEPT)
        ]
        assert pixels[2] == [0, 0, 0]
        assert len({tuple(p) for p in pixels}) == 3

    def test_a_grid_need_not_divide_the_frame(self):
        white = np.full((7, 10, 3), 255, dtype=np.uint8)
        states = np.zeros((3, 4), dtype=np.uint8)
        states[2, 3] = KEPT
        bright = (shade(white, states) == 255).all(axis=-1)
        rows, columns = np.nonzero(bright)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 6, 8, 9)
        assert bright.sum() == 4

    def test_a_narrow_frame_has_a_pixel_for_every_token(self):
        frames = np.zeros((1, 4, 800, 3), dtype=np.uint8)
        assert thumbnails(frames, (3, 40)).shape == (1, 3, 192, 3)

    def test_a_sheet_is_as_wide_as_its_caption(self):
        tiles, states = np.zeros((1, 4, 4, 3), dtype=np.uint8), np.zeros((1, 2, 2), dtype=np.uint8)
        short, long = (contact_sheet(tiles, states, ["0"], [text]).width for text in ("a", 60 * "a"))
        assert short < 60 < 300 < long
        assert png(contact_sheet(tiles, states, ["0"], ["a"])).startswith(b"\x89PNG")

    def test_merged_tokens_are_marked(self):
        tokens = VisualTokens(features=torch.rand(1, 4, 2), grid=(2, 2), timestamps_s=torch.zeros(1))
        pruned = PrunedTokens(
            features=torch.rand(1, 2), indices=torch.tensor([2]), assignment=torch.tensor([0, -1, 0, -1])
        )
        assert compare.token_states(tokens, pruned).tolist() == [[[MERGED, DROPPED], [KEPT, DROPPED]]]


def test_help_says_that_all_methods_read_one_saliency(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "(p-attn for all methods)" in " ".join(capsys.readouterr().out.split())
