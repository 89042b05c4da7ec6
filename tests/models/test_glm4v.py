"""GLM-V beside the common tests: prompts and times, images beside videos, signals of the tower, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tango
from tango.containers import ALL_SIGNALS, Signal
from tango.containers import Video as Clip
from tango.errors import CheckpointError, OptionError
from tango.methods import KeepAllPruner
from tango.models import adapter_class, frame_batches
from tango.models.processors.glm import FORMS, GlmProcessor
from tango.models.processors.qwen import Patches
from tango.profiling import StageTimer
from tests import tiny_qwen
from tests.families import Picture, Video, all_families
from tests.families import glm as tiny_glm

NAMES = tuple(tiny_glm.CLASSES)
FAMILIES = {name: all_families()[name] for name in NAMES}
GREEDY = {"do_sample": False, "max_new_tokens": 4}
ROWS = (("A ", Video(6, 1), " why?"), ("And what is in this other one? ", Video(4, 2), " Tell me."))
MIXED = (("See ", Picture(5), " and ", Video(6, 1), " and ", Picture(6), " why?"), ("And? ", Video(4, 2), " Well?"))


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return FAMILIES[name].model()


def clip(count: int = 6, height: int = 56, width: int = 84, seconds: float = 0.75) -> Clip:
    generator = torch.Generator().manual_seed(count)
    return Clip(
        frames=torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator),
        timestamps_s=torch.arange(count, dtype=torch.float64) * seconds,
        frame_indices=tuple(range(count)),
        num_source_frames=count,
        duration_s=count * seconds,
        fps=1 / seconds,
        path="clip.mp4",
        backend="pyav",
    )


def processor(kind: str) -> GlmProcessor:
    return GlmProcessor(tiny_glm.tokenizer(), form=FORMS[kind], patches=Patches(size=14, min_pixels=1))


TEXT = "<|begin_of_video|><|video|><|end_of_video|>What?"


@pytest.mark.parametrize(
    ("kind", "times"),
    [("Glm4vProcessor", ["0", "1", "3"]), ("Glm46VProcessor", ["0.0 seconds", "1.5 seconds", "3.0 seconds"])],
)
@pytest.mark.parametrize("count", [6, 5])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of transformers' code
def test_prompts_and_pixels_are_those_of_transformers(kind: str, times: list[str], count: int) -> None:
    """The time of a step's first frame stands after the step; an odd frame is repeated."""
    video, make = clip(count), processor(kind)
    ours = make(text=TEXT, videos=video)
    step = "<|begin_of_image|>" + "<|image|>" * 6 + "<|end_of_image|>"
    expected = "<|begin_of_video|>" + "".join(step + time for time in times) + "<|end_of_video|>What?"
    assert make.decode(ours["input_ids"][0]) == expected
    assert ours["video_timestamps_s"][0].tolist() == video.timestamps_s.tolist()
    assert make.num_video_tokens(count, 56, 84) == 18
    assert not hasattr(make, "vision_marks")
    metadata = {"fps": video.fps, "total_num_frames": count, "frames_indices": list(range(count))}
    theirs = make.stock()(
        text=[TEXT],
        videos=[video.frames.permute(0, 3, 1, 2)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    for field in ("input_ids", "mm_token_type_ids", "video_grid_thw"):
        assert ours[field].tolist() == theirs[field].tolist(), field
    torch.testing.assert_close(ours["pixel_values_videos"], theirs["pixel_values_videos"], rtol=1e-4, atol=1e-4)


def test_images_beside_videos_are_told_apart_by_marks() -> None:
    from PIL import Image

    make = processor("Glm4vProcessor")
    text = "<|begin_of_image|><|image|><|end_of_image|>" + TEXT + "<|begin_of_image|><|image|><|end_of_image|>"
    given = make(text=text, videos=clip(4), images=[Image.new("RGB", (112, 112)), Image.new("RGB", (140, 112))])
    kinds = given["mm_token_type_ids"][0]
    assert torch.unique_consecutive(kinds[kinds > 0]).tolist() == [1, 2, 1]
    assert [int((kinds == kind).sum()) for kind in (1, 2)] == [16 + 20, 12]
    assert (given["input_ids"][0][kinds > 0] == make.tokenizer.convert_tokens_to_ids("<|image|>")).all()


def test_frames_without_times_warn_and_other_marks_are_refused() -> None:
    make = processor("Glm46VProcessor")
    with pytest.warns(UserWarning, match="half a second apart"):
        given = make(text=TEXT, videos=clip(4).frames)
    assert "1.0 seconds" in make.decode(given["input_ids"][0])
    with pytest.raises(OptionError, match="vision_marks='flat' is for Qwen3-VL"):
        tango.prepare(make, clip(), "What?", vision_marks="flat")


@pytest.fixture(scope="module")
def checkpoint(name: str, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name)
    model.save_pretrained(folder)
    tiny_glm.tokenizer().save_pretrained(folder)
    return folder


def test_a_loaded_checkpoint_answers(name: str, checkpoint: Path, tmp_path: Path) -> None:
    model, make = tango.load(checkpoint, dtype="float32", device="cpu")
    given = tango.prepare(make, clip(6, 150, 200), "What?")
    time = "1.5 seconds" if name == "glm46v" else "1"
    prompt = make.decode(given["input_ids"][0])
    assert prompt.startswith("[gMASK]<sop><|user|>\n<|begin_of_video|><|begin_of_image|><|image|>")
    assert f"<|end_of_image|>{time}<|begin_of_image|>" in prompt
    assert prompt.endswith("<|end_of_video|>What?<|assistant|>\n")
    assert given["video_grid_thw"].tolist() == [[3, 10, 14]]
    expected = model.generate(**FAMILIES[name].stock(given), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.2) as pruning:
        assert isinstance(tango.answer(model, make, clip(6, 150, 200), "What?", max_new_tokens=4), str)
    assert pruning.stats is not None
    assert (pruning.stats.tokens_before, pruning.stats.tokens_after) == (105, 21)
    make.save_pretrained(tmp_path)
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path)).__name__ == make.form.processor


@pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer_config.json"])
def test_the_checkpoint_says_how_times_are_written(checkpoint: Path, tmp_path: Path, file: str) -> None:
    """GLM-4.6V's models are of the types of GLM-4.1V and GLM-4.5V; only the processor's name differs."""
    for source in checkpoint.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    settings = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    for kind in FORMS:
        (tmp_path / file).write_text(json.dumps({**settings, "processor_class": kind}))
        assert tango.load(tmp_path, device="cpu")[1].form is FORMS[kind]
    (tmp_path / file).write_text(json.dumps({**settings, "processor_class": "Glm5NextProcessor"}))
    with pytest.raises(CheckpointError, match=r"Glm5NextProcessor; GLM-4.\dV has Glm4vProcessor or Glm46VProcessor"):
        tango.load(tmp_path)


def test_marks_that_the_tokenizer_knows_otherwise_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The class's own default for GLM-4.6V is another token of its tokenizer."""
    for source in checkpoint.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "video_start_token_id": 3}))
    with pytest.raises(CheckpointError, match=r"video_start_token_id of .* is 3, but the tokenizer has"):
        tango.load(tmp_path)


@torch.no_grad()
def test_images_beside_videos_keep_their_tokens(name: str, model: Any) -> None:
    """Against stock parts, since stock cannot take both in one call."""
    given = FAMILIES[name].inputs(*MIXED)
    kinds, inner = given["mm_token_type_ids"], model.model
    embeds = model.get_input_embeddings()(given["input_ids"])
    for kind, pixels, grids, features in (
        (1, "pixel_values", "image_grid_thw", inner.get_image_features),
        (2, "pixel_values_videos", "video_grid_thw", inner.get_video_features),
    ):
        found = torch.cat(list(features(given[pixels], given[grids], return_dict=True).pooler_output))
        embeds = embeds.masked_scatter((kinds == kind)[..., None], found)
    positions, _ = inner.get_rope_index(
        given["input_ids"],
        mm_token_type_ids=kinds,
        image_grid_thw=given["image_grid_thw"],
        video_grid_thw=given["video_grid_thw"],
        attention_mask=given["attention_mask"],
    )
    mask = given["attention_mask"]
    states = inner.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    expected, seen = model.lm_head(states), mask.bool()
    for rule in ("correct", "stock"):
        with tango.prune(model, KeepAllPruner(), positions=rule):
            torch.testing.assert_close(model(**given).logits[seen], expected[seen], rtol=1e-4, atol=1e-4)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        batch = model.generate(**given, **GREEDY)
        assert pruning.stats is not None
        lost = [a - b for a, b in zip(pruning.stats.prompt_before, pruning.stats.prompt_after, strict=True)]
        assert lost == [v.tokens_before - v.tokens_after for v in pruning.stats.videos]
        for row, ids in zip(MIXED, batch, strict=True):
            alone = FAMILIES[name].inputs(row)
            assert torch.equal(model.generate(**alone, **GREEDY)[0, -4:], ids[-4:])
    for missing in (None, kinds[:, 1:]):
        with (
            tango.prune(model, KeepAllPruner()),
            pytest.raises(ValueError, match="images beside videos need mm_token_type_ids"),
        ):
            model.generate(**{**given, "mm_token_type_ids": missing}, **GREEDY)


@torch.no_grad()
def test_images_alone_are_stock_and_videos_cannot_be_read_as_words(name: str, model: Any) -> None:
    given = FAMILIES[name].inputs(("See ", Picture(5), " why?"), ("And what is in this? ", Picture(6), " Well?"))
    expected, logits = model.generate(**given, **GREEDY), model(**given).logits
    with tango.prune(model, "tango", retention_ratio=0.25):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
        torch.testing.assert_close(model(**given).logits, logits, rtol=1e-4, atol=1e-4)
        with pytest.raises(tango.TangoError, match="placeholders of a video reached its LLM"):
            model.model(**FAMILIES[name].stock(FAMILIES[name].inputs(ROWS[0])))


@torch.no_grad()
def test_beams_are_those_of_the_same_embeddings(name: str, model: Any) -> None:
    given = FAMILIES[name].inputs(*ROWS)
    for method, options in (("uniform", {"retention_ratio": 1.0}), ("tango", {"retention_ratio": 0.25})):
        with tango.prune(model, method, **options) as pruning:
            ids = model.generate(**given, **GREEDY, num_beams=3)
            short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
        expected = model.generate(
            inputs_embeds=short.inputs_embeds,
            attention_mask=short.attention_mask,
            position_ids=short.position_ids,
            num_beams=3,
            **GREEDY,
        )
        assert torch.equal(ids[:, given["input_ids"].shape[1] :], expected)


@torch.no_grad()
def test_the_question_has_no_times(name: str, model: Any) -> None:
    """Neither those between frames, nor the last, which stands before the question."""
    given = FAMILIES[name].inputs(*ROWS, ("Is it? ", Video(4, 3)))
    found = adapter_class(name)(model).texts(given, Signal.TEXT, [18, 12, 12])
    embeds = model.get_input_embeddings()
    for text, question in zip((" why?", " Tell me.", "Is it? "), found, strict=True):
        assert torch.equal(question, embeds(torch.tensor(tiny_glm.tokenizer()(text)["input_ids"])))


@torch.no_grad()
def test_signals_are_those_of_the_last_block(name: str, model: Any) -> None:
    """Against eager attention, and features against stock's; in batches of any size."""
    given = FAMILIES[name].inputs(*ROWS)
    other = FAMILIES[name].model()
    other.set_attn_implementation("eager")
    seen: list[torch.Tensor] = []
    attention = other.model.visual.blocks[-1].attn
    module = __import__(type(attention).__module__, fromlist=["eager_attention_forward"])
    with pytest.MonkeyPatch.context() as patch:
        eager = module.eager_attention_forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = eager(*args, **kwargs)
            if args[0] is attention:
                seen.append(output[1])
            return output

        patch.setattr(module, "eager_attention_forward", noted)
        output = other.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"], return_dict=True)
    received = torch.cat(seen).mean((1, 2))  # (steps, patches), in merge units of four
    adapter = adapter_class(name)(model, saliency="attn")
    with adapter.tower_scope():
        videos = adapter.encode_videos(given, ALL_SIGNALS & ~Signal.TEXT, StageTimer()).videos
        saliency = torch.cat([v.saliency for v in videos if v.saliency is not None])
        torch.testing.assert_close(saliency, received.unflatten(1, (6, 4)).mean(2), rtol=1e-4, atol=1e-6)
        features = torch.cat([v.features.flatten(0, 1) for v in videos])
        torch.testing.assert_close(features, torch.cat(list(output.pooler_output)), rtol=1e-4, atol=1e-4)
        calls: list[int] = []
        hook = model.model.visual.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frame_batches, "CPU_BYTES", 24 * 16 * 32 * 4)  # one step of 24 patches
            steps = adapter.encode_videos(given, ALL_SIGNALS & ~Signal.TEXT, StageTimer()).videos
        hook.remove()
    assert calls == [24] * 5
    for a, b in zip(videos, steps, strict=True):
        for field in ("features", "saliency", "keys"):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_changes_no_bit_of_the_tower(name: str, attention: str) -> None:
    model = FAMILIES[name].model()
    model.set_attn_implementation(attention)
    grids = torch.tensor([(2, 4, 6), (1, 4, 8), (3, 6, 4)])
    pixels = torch.cat([tiny_qwen.pixels("qwen2_vl", grid, 7) for grid in grids.tolist()])
    expected = model.model.get_video_features(pixels, grids, return_dict=True)
    with adapter_class(name)(model).tower_scope():
        found = model.model.get_video_features(pixels, grids, return_dict=True)
    for a, b in zip(found.pooler_output, expected.pooler_output, strict=True):
        assert torch.equal(a, b)
