"""InternVL3 on the real classes with random weights: what is its own beside `test_every_family`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tango
from tango.containers import ALL_SIGNALS, VisualTokens
from tango.methods import KeepAllPruner, available_layer_pruners, build_layer_pruner
from tango.models import adapter_class, load
from tango.profiling import StageTimer
from tests import tiny
from tests.families import Picture, Video
from tests.families.internvl import SIZE, TILES, N, inputs, processor, stock, tokenizer
from tests.families.internvl import model as build

GREEDY = {"do_sample": False, "max_new_tokens": 4}
ROWS = (("Look: ", Video(6, 1), "What?"), ("And ", Video(3, 2), "in this one? ", Video(4, 3), "Tell me."))
WITH_PICTURE = (("A ", Picture(9), "B ", Video(5, 2), "why?"), ("Look: ", Video(4, 3), "What?", Picture(4)))
# The tower of the large checkpoints, and one with every part that a config can ask for.
LARGE = {"attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"}
TOWERS = {"small": {}, "large": LARGE, "normed": {**LARGE, "use_mean_pooling": False}}
QWEN3 = {"model_type": "qwen3", "head_dim": 16}
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
DECODERS = {"qwen2": {}, "qwen3": QWEN3, "qwen3_moe": {**QWEN3, **MOE, "model_type": "qwen3_moe"}}
DECODERS["llama"] = {"model_type": "llama"}


@pytest.fixture(scope="module")
def model() -> Any:
    return build()


@torch.no_grad()
def encode(model: Any, given: dict[str, Any], saliency: str = "p-attn") -> list[VisualTokens]:
    adapter = adapter_class("internvl")(model, saliency=saliency)
    return adapter.encode_videos(given, ALL_SIGNALS, StageTimer()).videos


def pooled(x: Tensor) -> Tensor:
    """(T, 64, C) -> (T, 16, C): means of 2 x 2 patches."""
    return x.unflatten(1, (4, 2, 4, 2)).mean((2, 4)).flatten(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("tower", TOWERS)
def test_signals_and_features_are_those_of_stock_code(tower: str) -> None:
    """Against what eager attention returns: the row of CLS, the mean over rows, and the state of CLS."""
    model, eager = build(**TOWERS[tower]), build(**TOWERS[tower])
    for built in (model, eager):
        for block in built.model.vision_tower.encoder.layer:  # norms are made as ones
            for norm in (block.attention.q_norm, block.attention.k_norm):
                for weight in norm.parameters():
                    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(weight)))
    eager.set_attn_implementation("eager")
    given = inputs(*ROWS)
    output = eager.model.vision_tower(given["pixel_values"], output_attentions=True)
    weights = output.attentions[-1].mean(1)  # (frames, 65, 65)
    states: list[Tensor] = []
    last = eager.model.vision_tower.encoder.layer[-1]
    hook = last.register_forward_hook(lambda _m, _a, out: states.append(out))
    features = eager.model.get_image_features(given["pixel_values"], return_dict=True).pooler_output
    hook.remove()
    for name, expected in {"p-attn": weights[:, 0], "attn": weights.mean(1)}.items():
        videos = encode(model, given, name)
        assert [len(video.features) for video in videos] == [6, 3, 4]
        saliency = torch.cat([video.saliency for video in videos if video.saliency is not None])
        torch.testing.assert_close(saliency, pooled(expected[:, 1:, None])[..., 0], rtol=1e-4, atol=1e-6)
        embeds = torch.cat([video.frame_embeds for video in videos if video.frame_embeds is not None])
        torch.testing.assert_close(embeds, states[0][:, 0], rtol=1e-4, atol=1e-4)
        assert all(video.keys is not None and video.keys.shape[1:] == (N, 8) for video in videos)
    ours = torch.cat([video.features for video in videos])
    torch.testing.assert_close(ours, features, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("text", DECODERS)
def test_decoders(text: str) -> None:
    """Keeping all is stock, also with a layer pruner that keeps all; those of one layer prune."""
    model, given = build(text=DECODERS[text], **LARGE), inputs(*ROWS)
    expected, seen = model(**stock(given)).logits, given["attention_mask"].bool()
    every = [build_layer_pruner(name, layer=2, retention_ratio=1.0) for name in available_layer_pruners()]
    of_one_layer = [pruner for pruner in every if pruner.layers == (2,)]  # the layers of the others do not fit four
    assert len(of_one_layer) >= 5
    for pruner in (None, *of_one_layer):
        with tango.prune(model, KeepAllPruner(), layer_pruner=pruner):
            torch.testing.assert_close(model(**given).logits[seen], expected[seen], rtol=1e-4, atol=1e-4)
    inside = build_layer_pruner("fastv", layer=2, retention_ratio=0.5)
    with tango.prune(model, "tango", retention_ratio=0.5, layer_pruner=inside) as pruning:
        model.generate(**given, **GREEDY)
        assert pruning.stats is not None
        assert pruning.stats.layer is not None
        entered, left = pruning.stats.layer.tokens
        assert 0 < left < entered < 13 * N


def test_gpt_oss_is_pruned_before_its_first_layer_alone() -> None:
    """Its attention slides over a window."""
    text = {"model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = build(text=text)
    with tango.prune(model, "uniform", retention_ratio=0.25):
        model.generate(**inputs(*ROWS), **GREEDY)
    with pytest.raises(tango.UnsupportedModelError, match=r"works with decoders .*, not gpt_oss"):
        tango.prune(model, "fastv", retention_ratio=0.5)


@torch.no_grad()
def test_pictures_beside_videos_are_kept_whole(model: Any) -> None:
    given = inputs(*WITH_PICTURE)
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        model.generate(**given, **GREEDY)
        assert pruning.stats is not None
        kept = [video.tokens_after for video in pruning.stats.videos]
        assert [video.tokens_before for video in pruning.stats.videos] == [5 * N, 4 * N]
        saved = [a - b for a, b in zip(pruning.stats.prompt_before, pruning.stats.prompt_after, strict=True)]
        assert saved == [5 * N - kept[0], 4 * N - kept[1]]
        short = pruning.encode(given["input_ids"], given["attention_mask"], given).short
    pictures = torch.cat([given["pixel_values"][:TILES], given["pixel_values"][-TILES:]])
    features = model.model.get_image_features(pictures, return_dict=True).pooler_output.flatten(0, 1)
    tiles = (short.input_ids == model.config.image_token_id) & ~short.is_video & short.attention_mask.bool()
    torch.testing.assert_close(short.inputs_embeds[tiles], features, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_times_tell_videos_where_nothing_else_does(model: Any) -> None:
    """As they do beside what transformers' own processor makes."""
    given = inputs(*ROWS)
    with tango.prune(model, "uniform", retention_ratio=0.25):
        expected = model.generate(**given, **GREEDY)
        del given["media"]
        assert torch.equal(model.generate(**given, **GREEDY), expected)


def test_media_must_account_for_every_tile(model: Any) -> None:
    given = inputs(ROWS[0])
    without = {name: value for name, value in given.items() if name != "media"}
    for wrong, message in (
        (stock(given), r"pixel_values may hold images or videos: .* video_timestamps=True"),
        ({**given, "media": [[("video", 5)]]}, r"pixel_values has 6 tiles, but media names 5"),
        ({**without, "video_timestamps_s": [[0.0, 1.0]]}, r"pixel_values has 6 tiles, but media names 2"),
    ):
        with tango.prune(model, "uniform", retention_ratio=0.25):
            for call in (partial(model.generate, **GREEDY), model):
                with pytest.raises(tango.PromptError, match=message):
                    call(**wrong)


def test_other_configurations_are_refused() -> None:
    for change, message in (
        ({"vision_feature_layer": -2}, "and layer -2"),
        ({"vision_feature_select_strategy": "full"}, "strategy 'default', got -1 with 'full'"),
    ):
        changed = build()
        for name, value in change.items():
            setattr(changed.config, name, value)
        with pytest.raises(tango.UnsupportedModelError, match=message):
            tango.prune(changed, "tango")
    with pytest.raises(tango.UnsupportedModelError, match=r"square frames .*\(56, 112\)"):
        tango.prune(build(image_size=(56, 112)), "tango")


def frames(count: int, seed: int = 0, size: tuple[int, int] = (90, 120)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, *size, 3), dtype=np.uint8)


def turns(*parts: str) -> str:
    return f"<|im_start|>user\n{''.join(parts)}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, of 5.17's own code
def test_the_processor_gives_what_the_stock_one_gives() -> None:
    """Ids and order of the tiles are the same; pixels differ by the rounding of uint8 images."""
    pytest.importorskip("torchvision")
    from PIL import Image

    own = processor()
    theirs = own.stock()
    picture = Image.fromarray(frames(1, 5, (60, 200))[0])
    text = turns("<IMG_CONTEXT>\n", "<video>\n", "And <video>\n", "what?")
    videos = [torch.from_numpy(frames(3, seed)) for seed in (1, 2)]
    ours = own(text=text, videos=videos, images=[picture])
    expected = theirs(text=[text], videos=videos, images=[[picture]], return_tensors="pt")
    assert torch.equal(ours["input_ids"], expected["input_ids"])
    assert ours["pixel_values"].shape == expected["pixel_values"].shape
    step = 1 / 255 / 0.224  # of an 8-bit image, after normalisation
    assert float((ours["pixel_values"] - expected["pixel_values"]).abs().max()) < 1.1 * step
    tiles = len(ours["pixel_values"]) - 6
    assert ours["media"] == [[("image", tiles), ("video", 3), ("video", 3)]]
    assert tiles > 1


def test_videos_of_unequal_length_in_one_call_are_as_alone() -> None:
    own = processor()
    videos = [torch.from_numpy(frames(count, count)) for count in (3, 5, 2)]
    texts = [turns("<video>\n", "<video>\n", "What is it?"), turns("<video>\n", "Tell me.")]
    batch = own(text=texts, videos=videos)
    alone = [own(text=texts[0], videos=videos[:2]), own(text=texts[1], videos=videos[2:])]
    assert batch["media"] == [*alone[0]["media"], *alone[1]["media"]]
    assert torch.equal(batch["pixel_values"], torch.cat([row["pixel_values"] for row in alone]))
    for i, row in enumerate(alone):
        assert torch.equal(batch["input_ids"][i][batch["attention_mask"][i].bool()], row["input_ids"][0])
    assert "media" not in own(text=texts, videos=videos, video_timestamps=False)
    assert "pixel_values" not in own(text=texts, videos=videos, video_pixels=False)
    assert own(text=texts, videos=videos, video_pixels=False)["media"] == batch["media"]


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: sizes as pairs, ImageNet's statistics in the file of the image processor, no file for videos."""
    folder = tmp_path_factory.mktemp("internvl")
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    settings = '{"image_mean": [0.5, 0.456, 0.406], "image_std": [0.229, 0.224, 0.25], "crop_to_patches": false}'
    (folder / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    return folder


def test_a_checkpoint_answers(checkpoint: Path) -> None:
    model, loaded = load(checkpoint, dtype="float32", device="cpu")
    given = tango.prepare(loaded, frames(8), "What?", num_frames=4, fps=2.0)
    assert given["pixel_values"].shape == (4, 3, SIZE, SIZE)
    numbered = "\n".join(f"Frame{i + 1}: <img>{'<IMG_CONTEXT>' * N}</img>" for i in range(4))
    assert tokenizer().decode(given["input_ids"][0]) == turns(numbered, "\nWhat?")
    assert given["media"] == [[("video", 4)]]
    [times] = given["video_timestamps_s"]
    assert len(times) == 4
    assert (times.diff() > 0).all()
    grey = tango.prepare(loaded, np.full((2, 90, 120, 3), 51, np.uint8), "What?")["pixel_values"]
    expected = (0.2 - torch.tensor([0.5, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.25])
    torch.testing.assert_close(grey, expected.view(3, 1, 1).expand(2, 3, SIZE, SIZE), rtol=1e-4, atol=1e-4)
    options: dict[str, Any] = {"num_frames": 4, "fps": 2.0, "max_new_tokens": 4}
    plain = tango.answer(model, loaded, frames(8), "What?", **options)
    with tango.prune(model, KeepAllPruner()):
        assert tango.answer(model, loaded, frames(8), "What?", **options) == plain
    with tango.prune(model, "tango", retention_ratio=0.25) as pruning:
        text = tango.answer(model, loaded, frames(8), "What?", **options)
        assert pruning.stats is not None
        assert pruning.stats.tokens_before == 4 * N
        video = tango.encode(model, loaded, frames(8), num_frames=4, fps=2.0)
        assert tango.answer(model, loaded, video, "What?", max_new_tokens=4) == text


def test_the_checkpoint_of_another_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(tango.CheckpointError, match=r"the tokenizer of .* lacks the token <img>"):
        load(tmp_path, device="cpu")


def test_sides_of_no_size_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = (checkpoint / "config.json").read_text(encoding="utf-8")
    assert '"image_size": [\n      56,\n      56\n    ]' in config
    for side, message in (("-56", "must be a whole number from 1"), ("56000000", "must be at most")):
        (tmp_path / "config.json").write_text(
            config.replace("      56\n    ]", f"      {side}\n    ]"), encoding="utf-8"
        )
        with pytest.raises(tango.CheckpointError, match=f"image_size {message}"):
            load(tmp_path, device="cpu")
