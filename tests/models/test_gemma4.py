"""What is Gemma 4's own: embeddings of layers, frames that see each other, sizes, forms of videos, its processor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tango
from tango.containers import ALL_SIGNALS, Video, VisualTokens
from tango.methods import KeepAllPruner, build_layer_pruner
from tango.models import adapter_class
from tango.models.processors.gemma4 import Frames, Gemma4Processor, videos_lie_flat
from tango.profiling import StageTimer
from tests import families
from tests.families import gemma4
from tests.runtime import test_waits

GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
ROWS = (
    ("Look: ", families.Video(4, 1), " What?"),
    ("See ", families.Picture(5), " and then ", families.Video(4, 2), " Tell me all."),
)
KINDS: dict[str, Callable[[], Any]] = {
    "own embeddings, shared keys": gemma4.model,
    "own embeddings": lambda: gemma4.model(num_kv_shared_layers=0),
    "frames see each other": gemma4.bidirectional,
}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


@torch.no_grad()
def test_keeping_all_is_stock_in_direct_calls_and_with_both_caches(model: Any) -> None:
    given = gemma4.inputs(*ROWS)
    modes: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}, {"num_beams": 3}, {"use_cache": False}]
    ids = [model.generate(**families.for_stock(given), **GREEDY, **mode) for mode in modes]
    with tango.prune(model, KeepAllPruner()):
        for mode, own in zip(modes, ids, strict=True):
            assert torch.equal(model.generate(**given, **GREEDY, **mode), own), mode
        logits = model(**given).logits
    seen = given["attention_mask"].bool()
    assert float(logits[seen].abs().max()) > 0.5
    if gemma4.direct_calls_take_videos():
        expected = model(**families.for_stock(given)).logits
        torch.testing.assert_close(logits[seen], expected[seen], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_prefill_in_chunks_is_the_prefill_in_one(model: Any) -> None:
    given = gemma4.inputs(ROWS[0])
    if model.config.text_config.use_bidirectional_attention == "vision":
        pytest.skip("chunks cut frames that see each other")
    with tango.prune(model, "tango", retention_ratio=0.5):
        expected = model.generate(**given, **GREEDY)
        assert torch.equal(model.generate(**given, **GREEDY, prefill_chunk_size=16), expected)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["contiguous", "kept"])
def test_the_pruned_prefill_is_what_its_embeddings_and_ids_give(model: Any, positions: str) -> None:
    """Without generate: plain decoding of each short prompt by stock calls, token by token, without a cache."""
    given, config = gemma4.inputs(*ROWS), model.config
    spoken = (config.image_token_id, config.video_token_id, config.audio_token_id)  # which stock code reads as pads
    with tango.prune(model, "tango", retention_ratio=0.25, positions=positions) as pruning:
        generated = model.generate(**given, **GREEDY)[:, given["input_ids"].shape[1] :]
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    assert 0 < int(short.is_video.sum()) < 48
    for row in range(2):
        real = short.attention_mask[row].bool()
        ids, embeds = short.input_ids[row : row + 1, real], short.inputs_embeds[row : row + 1, real]
        media = (ids == config.image_token_id) | short.is_video[row : row + 1, real]
        places = short.position_ids[row : row + 1, real]
        assert torch.equal(places[0], torch.arange(len(places[0]))) == (positions == "contiguous")
        for token in generated[row]:
            options = {
                "mm_token_type_ids": media.long(),
                "position_ids": places,
                "attention_mask": torch.ones_like(ids),
            }
            if config.text_config.hidden_size_per_layer_input:
                text = torch.where(media, config.text_config.pad_token_id, ids)
                options["per_layer_inputs"] = model.model.language_model.get_per_layer_inputs(text, None)
            logits = model(inputs_embeds=embeds, **options).logits[0, -1]
            logits[config.text_config.eos_token_id] = -torch.inf  # as `min_new_tokens` does
            assert int(logits.argmax()) == int(token)
            said = token if int(token) not in spoken else torch.tensor(config.text_config.pad_token_id)
            ids = torch.cat([ids, said[None, None]], dim=1)
            embeds = torch.cat([embeds, model.get_input_embeddings()(said[None, None])], dim=1)
            media = torch.nn.functional.pad(media, (0, 1))
            places = torch.cat([places, places[:, -1:] + 1], dim=1)


@torch.no_grad()
def test_kinds_of_tokens_matter() -> None:
    """Without them the short prompt would give other logits, so what the tests above compare is no accident."""
    model, given = gemma4.bidirectional(), gemma4.inputs(ROWS[0])
    with tango.prune(model, "uniform", retention_ratio=0.5) as pruning:
        logits = model(**given).logits[:, -1]
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    causal = model(inputs_embeds=short.inputs_embeds).logits[:, -1]
    assert float((logits - causal).abs().max()) > 0.1


def two_sizes() -> dict[str, Any]:
    """A wide video of three frames, and a tall one of two, as one row each."""
    given = gemma4.inputs(("a ", families.Video(3, 1), " b"), flat=True)
    rows, columns = 6, 2
    tall, positions = torch.zeros(2, gemma4.LONG, 48), torch.full((2, gemma4.LONG, 2), -1)
    tall[:, :12] = torch.rand(2, 12, 48, generator=torch.Generator().manual_seed(3))
    for i in range(rows * columns):
        positions[:, i] = torch.tensor([i % columns, i // columns])
    given["pixel_values_videos"] = torch.cat([given["pixel_values_videos"], tall])
    given["video_position_ids"] = torch.cat([given["video_position_ids"], positions])
    given["num_frames_per_video"] = torch.tensor([3, 2])
    given["video_timestamps_s"] = [[0.0, 2.0, 4.0], [0.0, 1.0]]
    return given


@torch.no_grad()
def encode(model: Any, given: dict[str, Any], saliency: str = "attn") -> list[VisualTokens]:
    wants = ALL_SIGNALS & ~tango.Signal.TEXT
    return adapter_class("gemma4")(model, saliency=saliency).encode_videos(given, wants, StageTimer()).videos


@torch.no_grad()
def test_features_and_signals_of_unequal_sizes_are_those_of_stock_code() -> None:
    """Against stock features, and against what eager attention returns for padded frames in the last block."""
    model, given = gemma4.model(), two_sizes()
    videos = encode(model, given)
    assert [(v.grid, v.features.shape) for v in videos] == [((2, 3), (3, 6, 64)), ((3, 1), (2, 3, 64))]
    other = gemma4.model()
    other.set_attn_implementation("eager")
    pixels, positions = given["pixel_values_videos"], given["video_position_ids"]
    if videos_lie_flat():
        counts = given["num_frames_per_video"]
        features = other.model.get_video_features(pixels, positions, counts, return_dict=True).pooler_output
    else:
        pairs = zip(pixels.split([3, 2]), positions.split([3, 2]), strict=True)
        features = [other.model.get_video_features(p[None], x[None], return_dict=True).pooler_output for p, x in pairs]
        features = [torch.cat(list(own)) for own in features]
    output = other.model.vision_tower(pixels, positions, output_attentions=True)
    weights = output.attentions[-1].mean((1, 2))  # (frames, patches): what each receives from padding too
    for video, expected, (rows, columns), frames in zip(
        videos, features, [(4, 6), (6, 2)], [slice(0, 3), slice(3, 5)], strict=True
    ):
        torch.testing.assert_close(video.features.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
        count = rows * columns
        real = output.attentions[-1][frames].mean(1)[:, :count, :count].mean(1)  # over heads, then real queries
        pooled = real.view(-1, rows // 2, 2, columns // 2, 2).mean((2, 4)).flatten(1)
        torch.testing.assert_close(video.saliency, pooled, rtol=1e-4, atol=1e-6)
        assert video.keys is not None
        assert video.keys.shape == (*video.features.shape[:2], 8)
    assert weights.shape[1] == gemma4.LONG
    assert all(v.saliency is not None and (v.saliency > 0).all() for v in encode(model, given, "p-attn"))


def test_both_forms_of_videos_are_read() -> None:
    model, rows = gemma4.model(), (("A ", families.Video(3, 1), " b ", families.Video(3, 2), " c"),)
    flat, stacked = (encode(model, gemma4.inputs(*rows, flat=flat)) for flat in (True, False))
    assert gemma4.inputs(*rows, flat=False)["pixel_values_videos"].shape == (2, 3, gemma4.LONG, 48)
    for a, b in zip(flat, stacked, strict=True):
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.timestamps_s, b.timestamps_s)


def test_equal_frames_are_encoded_once() -> None:
    model, given = gemma4.model(), gemma4.inputs(ROWS[0], flat=True)
    given["pixel_values_videos"][2:] = given["pixel_values_videos"][:2]
    counts: list[int] = []
    hook = model.model.vision_tower.patch_embedder.register_forward_hook(
        lambda _m, args, _o: counts.append(len(args[0]))
    )
    with tango.prune(model, "tango", retention_ratio=0.5):
        expected = model.generate(**given, **GREEDY)
    with tango.prune(model, "tango", retention_ratio=0.5, reuse=True):
        assert torch.equal(model.generate(**given, video_first_equal=[[0, 1, 0, 1]], **GREEDY), expected)
    hook.remove()
    assert counts == [4, 2]


def test_what_does_not_fit_is_refused_by_name() -> None:
    model, given = gemma4.model(), gemma4.inputs(ROWS[0], flat=True)
    positions = given["video_position_ids"]
    turned, moved = positions.flip(-1), positions.clone()
    moved[2] = turned[2]
    for change, words in (
        ({"video_position_ids": None}, r"must have shape \(4, 32, 2\), as pixel_values_videos has, got none"),
        ({"video_position_ids": positions[:3]}, r"got \(3, 32, 2\)"),
        ({"video_position_ids": turned}, "row by row"),
        ({"video_position_ids": moved}, "in multiples of 2"),
        ({"num_frames_per_video": None}, "how many of the 4 frames belong to each video, at least one, got none"),
        ({"num_frames_per_video": torch.tensor([3])}, r"got \[3\]"),
        ({"input_features": torch.zeros(1, 4, 128)}, "without sound; leave out input_features"),
    ):
        with (
            tango.prune(model, "uniform", retention_ratio=0.5),
            pytest.raises((ValueError, tango.TangoError), match=words),
        ):
            model.generate(**{**given, **change}, **GREEDY)


def test_pruning_inside_the_decoder_and_models_without_a_tower_are_refused() -> None:
    for model in (gemma4.model(), gemma4.bidirectional()):
        with pytest.raises(tango.UnsupportedModelError, match="pruning at a layer does not work with gemma4"):
            tango.prune(model, KeepAllPruner(), layer_pruner=build_layer_pruner("fastv", layer=2, retention_ratio=0.5))
    blind = gemma4.model()
    blind.model.vision_tower = None
    with pytest.raises(tango.UnsupportedModelError, match="has no vision tower"):
        tango.prune(blind, "uniform", retention_ratio=0.5)


@pytest.mark.usefixtures("unchecked_annotations")  # the checks read values
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("method", ["uniform", "tango"])
def test_the_host_does_not_wait_between_tower_and_prefill(
    monkeypatch: pytest.MonkeyPatch, make: Any, method: str
) -> None:
    """But for Tango's similarities, which cut the video into segments, and stock caches of sliding layers."""
    monkeypatch.setattr(test_waits, "made", lambda _name: (make(), gemma4.inputs(ROWS[0])))
    before, after = test_waits.waits("gemma4", method)
    assert before == []
    assert len([w for w in after if " at transformers/cache_utils.py" not in w]) == int(method == "tango"), after


# --- the processor ---


def video(count: int = 3, height: int = 90, width: int = 160, seconds: float = 40.0) -> Video:
    generator = torch.Generator().manual_seed(count)
    return Video(
        frames=torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator),
        timestamps_s=torch.arange(count, dtype=torch.float64) * seconds,
        frame_indices=tuple(range(count)),
        num_source_frames=count,
        duration_s=count * seconds,
        fps=1 / seconds,
        path="clip.mp4",
        backend="pyav",
    )


def processor(**frames: Any) -> Gemma4Processor:
    return Gemma4Processor(gemma4.tokenizer(), frames=Frames(**frames), chat_template=gemma4.TEMPLATE)


SIZES = [(720, 1280), (1280, 720), (448, 448), (480, 640), (10, 1500), (1500, 10), (2160, 3840), (5, 5), (64, 96)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("max_tokens", [70, 280])
def test_frame_sizes_are_those_of_stock_code(height: int, width: int, max_tokens: int) -> None:
    pytest.importorskip("torchvision")
    from transformers.models.gemma4.video_processing_gemma4 import get_aspect_ratio_preserving_size

    expected = get_aspect_ratio_preserving_size(height, width, 16, 9 * max_tokens, 3)
    own = Frames(max_tokens=max_tokens)
    assert own.frame_size(height, width) == expected
    assert math.prod(own.grid(height, width)) <= max_tokens


def test_pixels_positions_and_prompts_are_those_of_the_stock_processor() -> None:
    """With two videos of one length and a picture; the stock processor is told the times."""
    pytest.importorskip("torchvision")
    from transformers.video_utils import VideoMetadata

    make, clips = processor(), [video(), video(3, 160, 90)]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8))
    text = f"<bos>a {gemma4.VIDEO} b {gemma4.IMAGE} c {gemma4.VIDEO} d"
    own = make(text=text, videos=clips, images=[picture])
    metadata = [
        VideoMetadata(total_num_frames=3, fps=v.fps, duration=v.duration_s, frames_indices=[0, 1, 2]) for v in clips
    ]
    stock = make.stock()(
        text=[text], videos=[v.frames.permute(0, 3, 1, 2) for v in clips], images=[[picture]], video_metadata=metadata,
        do_sample_frames=False, return_tensors="pt", add_special_tokens=False,
    )  # fmt: skip
    assert set(stock) | {"video_timestamps_s", "video_first_equal"} == set(own)
    for name in set(stock) - {"pixel_values_videos"}:
        assert torch.equal(own[name].long(), stock[name].long()) or name == "pixel_values"
    torch.testing.assert_close(own["pixel_values"], stock["pixel_values"])
    assert own["pixel_values_videos"].shape == stock["pixel_values_videos"].shape
    assert float((own["pixel_values_videos"] - stock["pixel_values_videos"]).abs().max()) <= 1.01 / 255
    assert set(own) <= set(make.model_input_names)


def test_times_reach_the_prompt() -> None:
    make = processor(size=4, kernel=2, max_tokens=6)
    frame = gemma4.BOI + gemma4.VIDEO * 3 + gemma4.EOI
    inputs = make(text=f"<bos>{gemma4.VIDEO}?", videos=video(4, 20, 40, seconds=59.9))
    expected = f"<bos>00:00 {frame} 00:59 {frame} 01:59 {frame} 02:59 {frame}?"
    assert make.decode(inputs["input_ids"][0]) == expected  # one <bos>: the template wrote it
    assert [t.tolist() for t in inputs["video_timestamps_s"]] == [pytest.approx([0, 59.9, 119.8, 179.7])]
    assert make.num_video_tokens(4, 20, 40) == 12
    with pytest.warns(UserWarning, match="one second apart"):
        inputs = make(text=gemma4.VIDEO, videos=video(2, 20, 40).frames)
    assert make.decode(inputs["input_ids"][0]) == f"00:00 {frame} 00:01 {frame}"
    assert "video_timestamps_s" not in inputs
    blank = make(text=gemma4.VIDEO, videos=video(2, 20, 40), video_pixels=False)
    assert "pixel_values_videos" not in blank
    assert torch.equal(blank["video_position_ids"], inputs["video_position_ids"])


def test_videos_of_unequal_length_lie_flat() -> None:
    make = processor(size=4, kernel=2, max_tokens=6)
    inputs = make(text=[f"a{gemma4.VIDEO}", f"{gemma4.VIDEO}b"], videos=[video(2, 20, 40), video(3, 40, 20)])
    assert inputs["num_frames_per_video"].tolist() == [2, 3]
    assert inputs["pixel_values_videos"].shape == (5, 24, 48)
    equal = make(text=f"{gemma4.VIDEO}{gemma4.VIDEO}", videos=[video(2), video(2)])
    assert equal["pixel_values_videos"].dim() == (3 if videos_lie_flat() else 4)
    assert ("num_frames_per_video" in equal) == videos_lie_flat()


def save(folder: Path, **processor_file: Any) -> Path:
    """A checkpoint: the tokenizer knows the video token as plain text, as published ones may."""
    gemma4.model().save_pretrained(folder)
    gemma4.tokenizer().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor_file))
    return folder


def test_a_loaded_checkpoint_answers_pruned_and_encoded_once(tmp_path: Path) -> None:
    folder = save(tmp_path, video_processor={"max_soft_tokens": 140}, image_processor={"max_soft_tokens": 280})
    model, make = tango.load(folder, dtype="float32", device="cpu")
    assert (make.frames, make.default_num_frames) == (Frames(size=4, kernel=2, max_tokens=140), 32)
    clip = video(4, 40, 60, seconds=1.5)
    given = tango.prepare(make, clip, "What?")
    text = make.decode(given["input_ids"][0])
    assert text.startswith(f"<bos>user\n00:00 {gemma4.BOI}")
    assert f"{gemma4.EOI} 00:01 {gemma4.BOI}" in text
    assert f"{gemma4.EOI} 00:04 {gemma4.BOI}" in text
    expected = model.generate(**families.for_stock(given), **GREEDY)
    with tango.prune(model, KeepAllPruner()):
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        answer = tango.answer(model, make, clip, "What?", max_new_tokens=5)
        assert pruning.stats is not None
        assert pruning.stats.tokens_after == pytest.approx(pruning.stats.tokens_before / 4, abs=4)
        assert tango.answer(model, make, tango.encode(model, make, clip), "What?", max_new_tokens=5) == answer


def test_weights_of_layers_that_take_others_keys_are_left_aside(tmp_path: Path) -> None:
    """Checkpoints may have them, and no model uses them."""
    file = save(tmp_path) / "model.safetensors"
    weights = load_file(file)
    first = "model.language_model.layers.0.self_attn.k_"
    extra = {key.replace(".0.", ".4."): x.clone() for key, x in weights.items() if key.startswith(first)}
    assert len(extra.keys() - weights.keys()) == 2
    save_file(weights | extra, file, metadata={"format": "pt"})
    model, _ = tango.load(tmp_path, dtype="float32", device="cpu")
    given = gemma4.inputs(ROWS[0])
    expected = gemma4.model().generate(**families.for_stock(given), **GREEDY)
    assert torch.equal(model.generate(**families.for_stock(given), **GREEDY), expected)


def test_tokens_of_a_frame_are_never_those_of_an_image(tmp_path: Path) -> None:
    config = gemma4.config()
    gemma4.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_soft_tokens": 280}))
    assert adapter_class(config).make_processor(tmp_path, config).frames.max_tokens == 70
    assert adapter_class(config).tokens_per_step(config) == 64


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    gemma4.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(tango.TangoError, match=r"has no chat template; take an instruction-tuned checkpoint \(-it\)"):
        adapter_class("gemma4").make_processor(tmp_path, gemma4.config())


def test_a_video_token_of_plain_text_becomes_a_special_one() -> None:
    made = processor().tokenizer
    number = made.convert_tokens_to_ids(gemma4.VIDEO)
    assert number == gemma4.config().video_token_id
    assert made.added_tokens_decoder[number].special
