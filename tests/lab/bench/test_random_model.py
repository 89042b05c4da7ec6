"""Models with random weights: the published shapes, made where they are wanted."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from tango.errors import OptionError, UnknownNameError
from tango.lab.bench import random_model
from tango.models import adapter_class
from tango.ops.llm_shapes import PUBLISHED_SHAPES, Llm, llm_of
from tango.toy import tiny_tokenizer

META, CPU = torch.device("meta"), torch.device("cpu")

# Parameters of model and LLM (without its head) as the hub states them, or as they follow from the LLM's own numbers.
PUBLISHED = {
    "llava-onevision-0.5b": (893_618_208, 494_032_768),
    "llava-onevision-7b": (8_030_348_832, 7_615_616_512 - 152064 * 3584),
    "llava-video-7b": (8_030_348_832, 7_615_616_512 - 152064 * 3584),
    "qwen2.5-vl-3b": (3_754_622_976, 3_085_938_688),
    "qwen2.5-vl-7b": (8_292_166_656, 7_615_616_512 - 152064 * 3584),
    "qwen2.5-vl-32b": (33_452_718_336, 32_763_876_352 - 152064 * 5120),
    "qwen2.5-vl-72b": (73_410_777_344, 72_706_203_648 - 152064 * 8192),
    "qwen3-vl-2b": (2_127_532_032, 1_720_574_976),
    "qwen3-vl-4b": (4_437_815_808, 4_022_468_096),
    "qwen3-vl-8b": (8_767_123_696, 8_190_735_360 - 151936 * 4096),
    "qwen3-vl-32b": (33_357_390_064, 32_762_123_264 - 151936 * 5120),
    "qwen3-vl-30b-a3b": (31_070_754_032, 30_532_122_624 - 151936 * 2048),
    "qwen3-vl-235b-a22b": (235_670_022_896, 235_093_634_560 - 151936 * 4096),
    "smolvlm2-256m": (256_484_928, 134_515_008 + 128 * 576),
    "smolvlm2-500m": (507_482_304, 361_821_120 + 128 * 960),
    "smolvlm2-2.2b": (2_246_784_880, 1_711_376_384 + 128 * 2048),
}


# Billions of parameters, as the hub and the models' cards round them.
ROUNDED = {
    "internvl3-1b": "0.938", "internvl3-2b": "2.09", "internvl3-8b": "7.94", "internvl3-14b": "15.1",
    "internvl3-38b": "38.4", "internvl3-78b": "78.4",
    "internvl3.5-1b": "1.1", "internvl3.5-2b": "2.3", "internvl3.5-4b": "4.7", "internvl3.5-8b": "8.5",
    "internvl3.5-14b": "15.1", "internvl3.5-38b": "38.4", "internvl3.5-30b-a3b": "30.8",
    "internvl3.5-241b-a28b": "240.7",
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    model, _ = random_model.build(name, device=META, dtype=torch.bfloat16)
    found = [sum(p.numel() for p in part.parameters()) for part in (model, model.get_decoder())]
    assert tuple(found) == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_shapes_have_about_the_published_number_of_parameters(name: str) -> None:
    model, _ = random_model.build(name, device=META, dtype=torch.bfloat16)
    _, decimals = ROUNDED[name].split(".")
    assert f"{sum(p.numel() for p in model.parameters()) / 1e9:.{len(decimals)}f}" == ROUNDED[name]


@pytest.mark.parametrize("name", PUBLISHED_SHAPES)
def test_shapes_agree_with_those_that_flops_are_counted_of(name: str) -> None:
    shape = PUBLISHED_SHAPES[name]
    config = random_model.make_config(name, tiny_tokenizer())
    assert llm_of(config) == Llm(**{field.name: getattr(shape, field.name) for field in fields(Llm)})
    adapter, frames = adapter_class(config), shape.default_frames
    assert adapter.default_num_frames == frames
    steps = frames // shape.frames_per_step
    full = steps * shape.tokens_per_step
    assert adapter.num_video_tokens(config, frames) == full + round(shape.num_newlines(steps, full))


@pytest.mark.parametrize("name", ["llava-onevision-7b", "qwen2.5-vl-7b"])
def test_everything_is_made_on_the_device_in_the_type_that_was_asked_for(name: str) -> None:
    model, _ = random_model.build(name, device=META, dtype=torch.float16, attn_implementation="eager")
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.config._attn_implementation == "eager"
    assert not model.training
    if name.startswith("llava"):
        assert model.pooling_head.folded_probe.device.type == "meta"
        assert model.pooling_head.width == 1152


def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    models = [
        random_model.build("llava-video-tiny", device=CPU, dtype=torch.float32, seed=seed)[0] for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    probes = [model.pooling_head.folded_probe for model in models]
    weights = [model.model.language_model.layers[0].self_attn.q_proj.weight for model in models]
    for same, again, other in (probes, weights):
        assert torch.equal(same, again)
        assert not torch.equal(same, other)


@pytest.mark.parametrize("name", ["llava-onevision-7b", "qwen2.5-vl-7b", "qwen3-vl-30b-a3b", "internvl3-38b"])
def test_fewer_layers_keep_the_widths(name: str) -> None:
    config = random_model.make_config(name, tiny_tokenizer(), layers=3, tower_layers=9)
    full = random_model.make_config(name, tiny_tokenizer())
    assert config.get_text_config().num_hidden_layers == 3
    assert replace(llm_of(config), num_layers=llm_of(full).num_layers) == llm_of(full)
    assert config.vision_config.hidden_size == full.vision_config.hidden_size
    if name.startswith("qwen3"):
        assert config.vision_config.depth == 9
        assert list(config.vision_config.deepstack_visual_indexes) == [8]
        assert list(full.vision_config.deepstack_visual_indexes) == [8, 16, 24]
    elif name.startswith("qwen"):
        assert config.vision_config.depth == 9
        assert list(config.vision_config.fullatt_block_indexes) == [7, 8]  # the last sees whole frames, as published
        assert list(full.vision_config.fullatt_block_indexes) == [7, 15, 23, 31]
    else:
        assert config.vision_config.num_hidden_layers == 9


@pytest.mark.parametrize("options", [{"layers": 29}, {"layers": 0}, {"tower_layers": 27}])
def test_more_layers_than_published_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=r"this shape has 2[68] "):
        random_model.build("llava-onevision-7b", device=META, dtype=torch.float32, **options)


def test_a_hybrid_needs_a_layer_with_attention() -> None:
    with pytest.raises(OptionError, match="ask for at least 4 layers"):
        random_model.build("qwen3.5-9b", device=META, dtype=torch.float32, layers=3)


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'llava-video-7b'"):
        random_model.build("llava-video-8b", device=META, dtype=torch.float32)
