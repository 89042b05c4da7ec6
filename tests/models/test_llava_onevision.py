"""The adapter's tokens and signals against the stock model's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import tango
from tango.containers import Signal
from tango.models.base import adapter_class
from tango.models.llava_onevision import LlavaOnevisionAdapter
from tango.models.siglip import run_tower
from tango.profiling import StageTimer
from tests import tiny

EVERYTHING = Signal.SALIENCY | Signal.FRAME_EMBEDS


@pytest.fixture(scope="module")
def model():
    return tiny.llava_onevision()


def encode(model, *, saliency="p-attn", wants=EVERYTHING):
    adapter = adapter_class("llava_onevision")(model, saliency=saliency)
    inputs = {"pixel_values_videos": torch.stack([tiny.clip(1), tiny.clip(2)])}
    with torch.no_grad():
        return inputs, adapter.encode_videos(inputs, wants, StageTimer()).videos


def test_features_equal_the_stock_video_features(model):
    inputs, videos = encode(model)
    with torch.no_grad():
        stock = model.model.get_video_features(inputs["pixel_values_videos"], return_dict=True).pooler_output
    ours = torch.stack([video.features.flatten(0, 1) for video in videos])
    stock = stock.view(2, -1, ours.shape[-1])[:, : ours.shape[1]]  # newer releases add the newline
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)  # pooling before the last linear layer rounds apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pooling_a_view_gives_the_bits_of_pooling_a_copy(model, dtype):
    x = torch.randn(3, 64, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    adapter = LlavaOnevisionAdapter(model)
    copy = x.unflatten(1, (adapter.patches, adapter.patches)).permute(0, 3, 1, 2).contiguous()
    expected = F.interpolate(copy, size=adapter.grid, mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(adapter.pool(x), expected)
    assert adapter.pool(x).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tower_runs_over_whole_rows_and_gives_the_stock_values(dtype):
    model = tiny.llava_onevision().to(dtype)
    tower, pixels, strides = model.model.vision_tower, tiny.clip(1).to(dtype), []
    for block in tower.encoder.layers:
        block.register_forward_pre_hook(lambda _, args: strides.append(args[0].is_contiguous()))
    with torch.no_grad():
        hidden = run_tower(tower, 2, pixels).hidden
        ours, strides[:] = list(strides), []
        stock = tower(pixels, output_hidden_states=True).hidden_states[2]
    assert ours == [True, True]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # a convolution's output laid out otherwise may round apart
    torch.testing.assert_close(hidden, stock, rtol=tolerance, atol=tolerance)


def test_attn_equals_eager_attention(model):
    """The tower stays on sdpa; the attention it received equals what eager attention returns."""
    inputs, videos = encode(model, saliency="attn", wants=Signal.SALIENCY)
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        weights = tower(inputs["pixel_values_videos"].flatten(0, 1), output_attentions=True).attentions[-1]
    tower.set_attn_implementation(before)
    expected = LlavaOnevisionAdapter(model).pool(weights.mean((1, 2))[..., None])[..., 0]
    ours = torch.cat([video.saliency for video in videos])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_only_wanted_signals_are_computed(model):
    _, videos = encode(model, wants=Signal.NONE)
    assert videos[0].saliency is None
    assert videos[0].frame_embeds is None
    _, videos = encode(model)
    assert videos[0].saliency.shape == (6, 16)
    assert videos[0].frame_embeds.shape == (6, 32)


def test_sinks_belong_to_the_full_grid_only(model):
    _, videos = encode(model)
    assert videos[0].sink_positions == ()
    full = tiny.tiny_model(tiny.tokenizer(), image_size=384, width=32, layers=1)
    adapter = LlavaOnevisionAdapter(full, saliency="attn")
    pixels = torch.zeros(1, 1, 3, 384, 384)
    with torch.no_grad():
        (video,) = adapter.encode_videos({"pixel_values_videos": pixels}, Signal.SALIENCY, StageTimer()).videos
    assert video.grid == (14, 14)
    assert video.sink_positions == (28, 27, 41, 169, 11, 12)
    assert adapter.num_video_tokens(full.config, 32) == 32 * 196 + 1


@pytest.mark.parametrize(("layer", "blocks_run"), [(-1, 2), (-2, 1), (2, 2), (1, 1)])
def test_the_configured_layer_is_used_and_nothing_after_it_runs(layer, blocks_run):
    model = tiny.llava_onevision()
    model.config.vision_feature_layer = layer
    tower = model.model.vision_tower
    ran = []
    for name, module in {**dict(tower.encoder.layers.named_children()), **dict(tower.named_children())}.items():
        if name != "encoder":
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    inputs, videos = encode(model)
    assert ran == ["embeddings", *map(str, range(blocks_run))]
    with torch.no_grad():
        stock = model.model.get_video_features(
            inputs["pixel_values_videos"], vision_feature_layer=layer, return_dict=True
        ).pooler_output
    assert "post_layernorm" in ran  # of the stock model: it throws the result away
    ours = torch.stack([video.features.flatten(0, 1) for video in videos])
    torch.testing.assert_close(ours, stock.view(2, -1, ours.shape[-1])[:, : ours.shape[1]])


def test_unusual_configurations_are_refused():
    model = tiny.llava_onevision()
    model.config.vision_feature_layer = [-1, -2]
    with pytest.raises(tango.UnsupportedModelError, match="one vision_feature_layer"):
        tango.prune(model, "uniform")
