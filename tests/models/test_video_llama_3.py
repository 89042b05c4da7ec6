"""What only VideoLLaMA 3 has: separate projections in its tower, a pruning of its own, and prompts with times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tango
from tango.containers import Signal
from tango.models.base import adapter_class
from tango.models.processors.video_llama_3 import VideoLlama3Processor
from tango.profiling import StageTimer
from tests import families, tiny_qwen
from tests.families.video_llama_3 import FAMILY, pixels
from tests.models.test_packed_attention import assert_same_bits, counting_calls
from tests.models.test_qwen_processor import frames, video

ROW = ("Look: ", families.Video(4, seed=1), " and ", families.Picture(seed=2), " What?")
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}
PIECE = "<|video_pad|>"


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILY.model()


def encoded(model: Any, inputs: dict[str, Any], saliency: str = "p-attn") -> Any:
    adapter = adapter_class("video_llama_3")(model, saliency=saliency)
    host = {"attention_mask": None, **inputs}
    with torch.no_grad(), adapter.tower_scope():
        return adapter.encode_videos(host, Signal.SALIENCY | Signal.KEYS, StageTimer()).videos[0]


def test_features_and_saliency_are_those_of_the_stock_tower(model: Any) -> None:
    """Saliency against the weights of eager attention; keys against the projection and stock rotation."""
    from transformers.models.video_llama_3.modeling_video_llama_3 import apply_rotary_pos_emb_vision as rotate

    inputs = FAMILY.inputs(("Look ", families.Video(3, seed=1), "?"))
    ours = encoded(model, inputs, saliency="attn")
    eager = FAMILY.model()
    eager.set_attn_implementation("eager")
    last, weights, states = eager.model.vision_model.encoder.layers[-1].self_attn, [], []
    last.register_forward_hook(lambda _m, _a, output: weights.extend(output[1]))
    last.register_forward_pre_hook(lambda _m, args, kwargs: states.append((*args, kwargs)), with_kwargs=True)
    video = (inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["video_merge_sizes"])
    with torch.no_grad():
        stock = eager.model.get_video_features(*video, return_dict=True).pooler_output[0]
        hidden, kwargs = states[0]
        keys = rotate(*[last.k_proj(hidden).unflatten(-1, (2, -1))] * 2, *kwargs["position_embeddings"])[1]
    torch.testing.assert_close(ours.features.flatten(0, 1), stock)
    received = torch.cat([frame.mean((0, 1, 2)) for frame in weights])
    torch.testing.assert_close(ours.saliency.flatten(), received.view(-1, 4).mean(1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.keys.flatten(0, 1), keys.mean(1).view(-1, 4, 16).mean(1))
    assert ours.grid == (2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_frames_of_one_size_attend_in_one_call_with_the_same_bits(dtype: torch.dtype) -> None:
    """Videos, whose tokens are four patches, and images, whose tokens are one."""
    model = FAMILY.model().to(dtype)
    before = {name: dict(vars(part)) for name, part in model.named_modules()}

    def outputs() -> list[torch.Tensor]:
        found = []
        for grids, size in (([(3, 4, 6), (2, 6, 4)], 2), ([(1, 3, 5), (1, 2, 3)], 1)):
            patches = pixels(sum(t * h * w for t, h, w in grids), seed=len(found)).to(dtype)
            given = (patches, torch.tensor(grids), torch.full((len(grids),), size))
            found.append(torch.cat(model.model.get_video_features(*given, return_dict=True).pooler_output))
        return found

    with torch.no_grad():
        with counting_calls() as calls:
            stock = outputs()
        with tango.prune(model, "none"), counting_calls() as ours:
            assert_same_bits(stock, outputs())
    assert (len(calls), len(ours)) == (3 * 7, 3 * 3)  # blocks x frames, and blocks x sizes
    for name, part in model.named_modules():
        assert vars(part).keys() == before[name].keys()
        assert not part._forward_pre_hooks


def test_a_prompt_that_is_pruned_already_is_refused(model: Any) -> None:
    inputs = FAMILY.inputs(ROW)
    mask = torch.ones(24, dtype=torch.bool)
    with tango.prune(model, "uniform", retention_ratio=0.5):
        expected = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, video_compression_mask=mask, **GREEDY), expected)
        mask[7:10] = False
        with pytest.raises(tango.PromptError, match=r"drops 3 of 24 tokens: .* use_token_compression=False"):
            model.generate(**inputs, video_compression_mask=mask, **GREEDY)
        sizes = {**inputs, "video_merge_sizes": torch.tensor([1])}
        with pytest.raises(tango.UnsupportedModelError, match=r"2 x 2 patches, got video_merge_sizes \[1\]"):
            model.generate(**sizes, **GREEDY)
        del inputs["image_merge_sizes"]
        with pytest.raises(ValueError, match="image_merge_sizes is missing"):
            model.generate(**inputs, **GREEDY)


def test_tokens_can_keep_their_positions(model: Any) -> None:
    rows = [ROW, ("Tell: ", families.Video(2, seed=5), "?")]
    inputs = FAMILY.inputs(*rows)
    with tango.prune(model, "uniform", retention_ratio=0.5, positions="kept") as pruning:
        assert model.generate(**inputs, **GREEDY).shape[0] == 2
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
        for row, seen in enumerate(short.attention_mask.bool()):
            padding = int((inputs["attention_mask"][row] == 0).sum())
            assert torch.equal(short.position_ids[row, seen], short.kept[row, seen] - padding)
    with tango.prune(model, "fastvid", retention_ratio=0.5) as pruning:  # its authors keep them
        assert pruning.adapter.positions_are_kept
    with pytest.raises(tango.OptionError, match="must be 'contiguous' or 'kept', got 'stock'"):
        tango.prune(model, "tango", positions="stock")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    folder = tmp_path_factory.mktemp("video_llama_3")
    model.save_pretrained(folder)
    tiny_qwen.tokenizer().save_pretrained(folder)
    return folder


def test_prompts_and_pixels_are_those_of_the_stock_processor(checkpoint: Path) -> None:
    """With its own pruning off. Pixels differ by rounding: stock code resizes whole numbers."""
    pytest.importorskip("torchvision")
    _, ours = tango.load(checkpoint)
    clips, picture = [video(4, 60, 90), video(3, 90, 60)], Image.new("RGB", (60, 60), "red")
    text = f"See {PIECE}\n then {PIECE}\n and <|image_pad|>\nwhy?"
    inputs = ours(text=text, videos=clips, images=picture)
    metadata = [
        {"fps": 2.0, "total_num_frames": len(clip.frames), "frames_indices": list(range(len(clip.frames)))}
        for clip in clips
    ]
    stock = ours.stock()(
        text=text, videos=[clip.frames.permute(0, 3, 1, 2) for clip in clips], images=[picture],
        video_metadata=metadata, do_sample_frames=False, use_token_compression=False, return_tensors="pt",
    )  # fmt: skip
    for name in ("input_ids", "video_grid_thw", "video_merge_sizes", "image_grid_thw", "image_merge_sizes"):
        assert torch.equal(inputs[name], stock[name]), name
    assert torch.equal(inputs["pixel_values"], stock["pixel_values"])
    assert (inputs["pixel_values_videos"] - stock["pixel_values_videos"]).abs().max() <= 1.01 / 127.5
    assert set(inputs) - set(stock) == {"video_timestamps_s", "video_first_equal"}


def test_frames_share_the_pixels_of_a_video(tmp_path: Path, checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"min_pixels": 4 * 28**2, "max_pixels": 64 * 28**2, "image_mean": [0.1] * 3}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings))
    _, ours = tango.load(tmp_path)
    assert ours.patches.mean == (0.1,) * 3
    assert [ours.num_video_tokens(count, 448, 448) for count in (1, 4, 16)] == [64, 4 * 16, 16 * 4]
    assert ours.num_video_tokens(1, 28, 28) == 4
    pytest.importorskip("torchvision")
    stock = ours.stock().video_processor
    for count, height, width in ((1, 720, 1280), (7, 300, 200), (40, 448, 448)):
        made = stock(torch.zeros(1, count, 3, height, width, dtype=torch.uint8), return_tensors="pt")
        assert made["video_grid_thw"][0].tolist() == list(ours.patches.grid(count, height, width))


def test_the_published_budget_and_template(checkpoint: Path) -> None:
    """16384 tokens of 28 x 28 pixels in all; no system turn, and a line break after every medium."""
    model, ours = tango.load(checkpoint)
    assert isinstance(ours, VideoLlama3Processor)
    assert ours.default_num_frames == 180
    assert (
        ours.num_video_tokens(180, 1000, 1000)
        == 180 * 81
        == adapter_class("video_llama_3").num_video_tokens(model.config, 180)
    )
    clip = replace(video(3, 60, 60), timestamps_s=torch.tensor([0.0, 1.26, 9.0], dtype=torch.float64))
    inputs = tango.prepare(ours, clip, "Hi?")
    piece = PIECE * (inputs["video_grid_thw"][0, 1:].prod() // 4)
    assert ours.decode(inputs["input_ids"][0]) == (
        f"<|im_start|>user\nTime 0.0s:{piece},Time 1.3s:{piece},Time 9.0s:{piece}\nHi?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [t.tolist() for t in inputs["video_timestamps_s"]] == [[0.0, 1.26, 9.0]]
    with pytest.warns(UserWarning, match="one second apart"):
        assert "Time 2.0s:" in ours.decode(ours(text=PIECE, videos=frames(3, 56, 56))["input_ids"][0])


def test_a_loaded_checkpoint_answers_beside_an_image(checkpoint: Path) -> None:
    pytest.importorskip("torchvision")
    model, ours = tango.load(checkpoint)
    parts = [
        {"type": "video", "video": video(6, 60, 80)},
        {"type": "image", "image": Image.new("RGB", (60, 60), "red")},
        {"type": "text", "text": "What?"},
    ]
    inputs = ours.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True, video_timestamps=True
    )
    stock = model.generate(**FAMILY.stock(inputs), **GREEDY)
    with tango.prune(model, "tango", retention_ratio=1.0):
        assert torch.equal(model.generate(**inputs, **GREEDY), stock)
    with tango.prune(model, "tango", retention_ratio=0.2) as pruning:
        assert isinstance(tango.answer(model, ours, video(6, 60, 80), "What?", max_new_tokens=4), str)
    assert pruning.stats.tokens_before == ours.num_video_tokens(6, 60, 80)
    assert pruning.stats.tokens_after < pruning.stats.tokens_before


def test_layer_pruners_prune_inside_the_llm(model: Any) -> None:
    with tango.prune(model, "fastv", retention_ratio=0.6, layer=1) as pruning:
        model.generate(**FAMILY.inputs(ROW), **GREEDY)
    assert pruning.stats.layer is not None
