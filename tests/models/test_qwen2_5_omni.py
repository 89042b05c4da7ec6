"""What only Qwen2.5-Omni has: sound beside the video, a thinker within a larger model, and marks of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import processing_utils

import tango
from tango.containers import Signal
from tango.models.base import adapter_class
from tango.models.processors.qwen2_5_omni import QwenOmniProcessor
from tango.profiling import StageTimer
from tests.families import Video
from tests.families.qwen2_5_omni import FAMILY, SPECIAL, inputs, tokenizer
from tests.models.test_packed_attention import assert_same_bits, counting_calls
from tests.models.test_qwen_processor import frames, video
from tests.tiny import new_tokens

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
HEARD = (("A ", Video(6, 1), " why?"), ("And what is in this other one? ", Video(4, 2), " Tell me."))


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILY.model()


@torch.no_grad()
@pytest.mark.parametrize("rows", [HEARD[:1], HEARD], ids=["one", "padded"])
def test_sound_between_the_frames_stays_and_is_heard(model: Any, rows: tuple[Any, ...]) -> None:
    given = inputs(*rows, heard=True)
    seen = given["attention_mask"].bool()
    stock, expected = model(**FAMILY.stock(given)).logits[seen], model.generate(**FAMILY.stock(given), **GREEDY)
    sounds = int((given["input_ids"] == model.config.audio_token_id).sum())
    other = {**given, "input_features": -given["input_features"]}
    with tango.prune(model, "uniform", retention_ratio=1.0):
        torch.testing.assert_close(model(**given).logits[seen], stock, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(**given, **GREEDY), expected)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
        assert int((short.input_ids == model.config.audio_token_id).sum()) == sounds > 0
        assert int(short.is_video.sum()) < int((given["input_ids"] == model.config.video_token_id).sum())
        together = new_tokens(model, given, model.generate(**given, **GREEDY))
        for row, found in zip(rows, together, strict=True):
            alone = inputs(row, heard=True)
            assert new_tokens(model, alone, model.generate(**alone, **GREEDY)) == [found]
        ends = [model(**x).logits[:, -1] for x in (given, other)]
        assert float((ends[0] - ends[1]).abs().max()) > 1e-3


@torch.no_grad()
def test_kept_tokens_retain_stock_positions_of_the_whole_prompt(model: Any) -> None:
    given = inputs(*HEARD, heard=True)
    positions, _ = model.get_rope_index(
        given["input_ids"], None, given["video_grid_thw"], given["attention_mask"], True,
        given["feature_attention_mask"].sum(-1), given["video_second_per_grid"],
    )  # fmt: skip
    with tango.prune(model, "uniform", retention_ratio=0.5) as pruning:
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    seen = short.attention_mask.bool()
    kept = positions.gather(2, short.kept.expand(3, -1, -1))
    assert torch.equal(short.position_ids[1:, seen], kept[:, seen].long())
    with tango.prune(model, "uniform", retention_ratio=0.5, positions="stock") as pruning:
        again = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    assert torch.equal(again.position_ids, short.position_ids)


@torch.no_grad()
def test_seconds_come_from_the_times_where_the_inputs_lack_them(model: Any) -> None:
    given = inputs(*HEARD)
    with tango.prune(model, "uniform", retention_ratio=0.5):
        expected = model.generate(**given, **GREEDY)
        del given["video_second_per_grid"]
        assert torch.equal(model.generate(**given, **GREEDY), expected)


@torch.no_grad()
def test_a_prompt_of_another_video_is_refused_before_stock_code_stumbles(model: Any) -> None:
    given = inputs(HEARD[0])
    given["input_ids"][0, 0] = model.config.video_token_id
    with tango.prune(model, "uniform", retention_ratio=0.5), pytest.raises(ValueError, match="19 video placeholders"):
        model.generate(**given, **GREEDY)


@torch.no_grad()
def test_sound_is_no_part_of_the_question(model: Any) -> None:
    """The last chunk of a video ends with sound, which stands after its last frame."""
    row, ids = HEARD[0], tokenizer().convert_tokens_to_ids
    given = inputs(row, heard=True)
    adapter = adapter_class("qwen2_5_omni_thinker")(model)
    assert given["input_ids"][0].tolist().index(ids("<|audio_eos|>")) > 0
    with adapter.tower_scope():
        tokens = adapter.encode_videos(given, Signal.TEXT, StageTimer()).videos[0]
    question = tokenizer()(row[-1], return_tensors="pt")["input_ids"]
    assert torch.equal(tokens.text, model.get_input_embeddings()(question)[0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_windows_of_one_size_attend_in_one_call_with_the_same_bits(dtype: torch.dtype) -> None:
    model = FAMILY.model().to(dtype)
    given = FAMILY.inputs(("A ", Video(6, 1), " B ", Video(4, 2), "?"))
    pixels, grids = given["pixel_values_videos"].to(dtype), given["video_grid_thw"]
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    with counting_calls() as calls:
        stock = model.get_video_features(pixels, grids, return_dict=True).pooler_output
    with tango.prune(model, "none"), counting_calls() as ours:
        assert_same_bits(list(stock), list(model.get_video_features(pixels, grids, return_dict=True).pooler_output))
    assert len(ours) < len(calls)
    for name, part in model.named_modules():
        assert vars(part).keys() == before[name].keys()
        assert not part._forward_pre_hooks


@torch.no_grad()
def test_saliency_is_that_of_the_stock_tower(model: Any) -> None:
    """In row-major order, from the weights of eager attention, whose patches follow each other window by window."""
    from transformers.vision_utils import get_vision_window_index

    given = {"attention_mask": None, **FAMILY.inputs(("Look ", Video(6, 1), "?"))}
    adapter = adapter_class("qwen2_5_omni_thinker")(model, saliency="attn")
    with adapter.tower_scope():
        ours = adapter.encode_videos(given, Signal.SALIENCY | Signal.KEYS, StageTimer()).videos[0]
    eager, weights = FAMILY.model(), []
    eager.set_attn_implementation("eager")
    root = adapter_class("qwen2_5_omni_thinker").root(eager)
    module = __import__(type(eager).__module__, fromlist=["eager_attention_forward"])
    attend = module.eager_attention_forward

    def noted(layer: Any, *args: Any, **kwargs: Any) -> Any:
        output = attend(layer, *args, **kwargs)
        weights.extend([output[1]] if layer is root.visual.blocks[-1].attn else [])
        return output

    module.eager_attention_forward = noted
    try:
        features = eager.get_video_features(given["pixel_values_videos"], given["video_grid_thw"], return_dict=True)
    finally:
        module.eager_attention_forward = attend
    torch.testing.assert_close(ours.features.flatten(0, 1), features.pooler_output[0])
    order, _ = get_vision_window_index(given["video_grid_thw"], spatial_merge_size=2, window_size=56, patch_size=14)
    received = torch.cat([frame.mean((0, 1, 2)) for frame in weights]).view(-1, 4).mean(1)
    torch.testing.assert_close(ours.saliency.flatten()[order], received, rtol=1e-4, atol=1e-7)
    assert not torch.equal(order, torch.arange(len(order)))


def test_spoken_answers_are_refused_by_name(model: Any) -> None:
    given = inputs(HEARD[0])
    with tango.prune(model, "uniform", retention_ratio=0.5):
        expected = model.generate(**given, **GREEDY)
        for option in ({"return_audio": True}, {"generation_mode": "audio"}):
            with pytest.raises(tango.OptionError, match=rf"text alone, got {next(iter(option))}=.*for spoken answers"):
                model.generate(**given, **GREEDY, **option)
        for option in ({"return_audio": False}, {"generation_mode": "text"}):
            assert torch.equal(model.generate(**given, **GREEDY, **option), expected)


def test_beams_with_several_sounds_are_refused(model: Any) -> None:
    """Stock code would give the first beam the first sound twice."""
    rows = (("A ", Video(4, 1), " B ", Video(4, 2), " why?"),)
    given, one = inputs(*rows, heard=True), inputs(*HEARD, heard=True)
    with tango.prune(model, "uniform", retention_ratio=0.5):
        model.generate(**given, **GREEDY)
        for option in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
            with pytest.raises(tango.OptionError, match=r"2 sounds, and \d beams or answers would hear the wrong"):
                model.generate(**given, **GREEDY, **option)
        alone = [inputs(row, heard=True) for row in HEARD]
        found = new_tokens(model, one, model.generate(**one, **GREEDY, num_beams=3))
        assert found == [new_tokens(model, x, model.generate(**x, **GREEDY, num_beams=3))[0] for x in alone]


def whole_model(thinker: Any) -> Any:
    """The model that published checkpoints hold, without the parts that speak. The thinker names the end of answers."""
    import transformers

    fields = thinker.config.to_dict()
    fields["text_config"].pop("eos_token_id")
    config = transformers.Qwen2_5OmniConfig(thinker_config=fields, enable_audio_output=False)
    built = transformers.Qwen2_5OmniForConditionalGeneration(config).eval()
    built.thinker.load_state_dict(thinker.state_dict())
    return built


def test_the_whole_model_is_refused_and_its_thinker_prunes_within_it(model: Any) -> None:
    whole = whole_model(model)
    whole.thinker.generation_config = model.generation_config
    with pytest.raises(
        tango.UnsupportedModelError, match=r"got Qwen2_5OmniForCond.*\(here model\.thinker, which.*give that model"
    ):
        tango.prune(whole, "tango")
    given = inputs(*HEARD, heard=True)
    with tango.prune(model, "tango", retention_ratio=0.25):
        expected = model.generate(**given, **GREEDY)
    with tango.prune(whole.thinker, "tango", retention_ratio=0.25):
        assert torch.equal(whole.thinker.generate(**given, **GREEDY), expected)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    """As published: the whole model, a tokenizer that names its marks, a generation config that names no end."""
    folder = tmp_path_factory.mktemp("omni")
    whole_model(model).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True}))
    tokens = tokenizer()
    tokens.save_pretrained(folder)
    named = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **SPECIAL, "extra_special_tokens": SPECIAL}))
    settings = {"image_mean": [0.1] * 3, "feature_size": 16, "chunk_length": 300, "min_pixels": 3136}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_a_published_checkpoint_answers_by_its_thinker(checkpoint: Path, model: Any) -> None:
    loaded, ours = tango.load(checkpoint)
    assert type(loaded) is type(model)
    assert isinstance(ours, QwenOmniProcessor)
    assert loaded.generation_config.eos_token_id == tokenizer().convert_tokens_to_ids("<|im_end|>")
    given = inputs(*HEARD, heard=True)
    assert torch.equal(
        loaded.generate(**FAMILY.stock(given), **GREEDY), model.generate(**FAMILY.stock(given), **GREEDY)
    )
    clip = video(6, 60, 80)
    prompt = tango.prepare(ours, clip, "What?")
    stock = loaded.generate(**FAMILY.stock(prompt), **GREEDY)
    with tango.prune(loaded, "tango", retention_ratio=1.0):
        assert torch.equal(loaded.generate(**prompt, **GREEDY), stock)
    with tango.prune(loaded, "tango", retention_ratio=0.2) as pruning:
        assert isinstance(tango.answer(loaded, ours, clip, "What?", max_new_tokens=4), str)
    assert pruning.stats.tokens_before == ours.num_video_tokens(6, 60, 80) > pruning.stats.tokens_after


def test_prompts_are_those_of_the_stock_processor(checkpoint: Path) -> None:
    """At two frames a second, which stock code assumes, and of a picture."""
    pytest.importorskip("torchvision")
    _, ours = tango.load(checkpoint)
    assert (ours.patches.mean, ours.patches.max_pixels) == ((0.1,) * 3, 448 * 448)
    clip, picture = video(4, 448, 448, seconds=0.5), Image.new("RGB", (60, 60), "red")
    parts = [{"type": "video", "video": clip}, {"type": "image", "image": picture}, {"type": "text", "text": "Hi?"}]
    text = ours.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_bos|><|VIDEO|>"
        "<|vision_eos|><|vision_bos|><|IMAGE|><|vision_eos|>Hi?<|im_end|>\n<|im_start|>assistant\n"
    )
    found = ours(text=text, videos=clip, images=picture)
    stock = ours.stock()(
        text=text, videos=[clip.frames.permute(0, 3, 1, 2)], images=[picture], do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip
    for name in ("input_ids", "video_grid_thw", "image_grid_thw", "pixel_values"):
        assert torch.equal(found[name], stock[name]), name
    assert torch.as_tensor(stock["video_second_per_grid"]).tolist() == found["video_second_per_grid"].tolist() == [1.0]
    assert set(found) - set(stock) == {"video_timestamps_s", "video_first_equal"}
    slow = ours(text=text.replace("<|IMAGE|>", ""), videos=video(4, 448, 448, seconds=2.0))
    assert slow["video_second_per_grid"].tolist() == [4.0]
    assert ours(text="<|VIDEO|>", videos=frames(4, 56, 56))["video_second_per_grid"].tolist() == [1.0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # stock code's way with numpy
def test_sound_of_the_stock_processor_is_heard(checkpoint: Path) -> None:
    """Its inputs, with sound between the frames, go through a pruned model as they are."""
    pytest.importorskip("torchvision")
    loaded, ours = tango.load(checkpoint)
    clip = video(6, 448, 448, seconds=0.5)
    options: dict[str, Any] = {"position_id_per_seconds": 4}  # as in the model's config
    if hasattr(processing_utils, "OmniModalProcessorMixin"):
        options |= {"load_audio_from_video": True, "audio_from_video_indices": [0], "do_sample_frames": False}
    else:
        options = {"videos_kwargs": {**options, "use_audio_in_video": True, "do_sample_frames": False}}
    given = ours.stock()(
        text="<|vision_bos|><|VIDEO|><|vision_eos|>why?", videos=[clip.frames.permute(0, 3, 1, 2)],
        audio=[torch.randn(16000 * 3, generator=torch.Generator().manual_seed(0)).numpy()], return_tensors="pt",
        **options,
    )  # fmt: skip
    given = {**given, "use_audio_in_video": True}
    assert int((given["input_ids"] == loaded.config.audio_token_id).sum()) > 0
    expected = loaded.generate(**given, **GREEDY)
    with tango.prune(loaded, "uniform", retention_ratio=1.0):
        assert torch.equal(loaded.generate(**given, **GREEDY), expected)
    with tango.prune(loaded, "uniform", retention_ratio=0.25) as pruning:
        loaded.generate(**given, **GREEDY)
    assert pruning.stats.tokens_after == pruning.stats.tokens_before // 4
