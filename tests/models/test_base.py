"""What every adapter says of its family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tango.models import adapter_class, supported_model_types
from tests import tiny, tiny_qwen

MODELS: dict[str, Callable[[], Any]] = {
    "llava_next_video": tiny.llava_next_video,
    "llava_onevision": tiny.llava_onevision,
    "llava_video": tiny.llava_video,
    **{family: lambda family=family: tiny_qwen.model(family) for family in tiny_qwen.ALL},
}


def inputs_of(name: str) -> dict[str, Any]:
    """One prompt with one video, for any family."""
    if name in tiny_qwen.ALL:
        return tiny_qwen.inputs(name, ("Look: ", tiny_qwen.TALL, " What?"))
    config, adapter = MODELS[name]().config, adapter_class(name)
    before, after = (tiny.tokenizer()(text)["input_ids"] for text in ("Look: ", " What?"))
    row = [*before, *[config.video_token_id] * adapter.num_video_tokens(config, 6), *after]
    return {**tiny.batch(row), "pixel_values_videos": tiny.clip(1)[None], "video_timestamps_s": tiny.TIMES}


def test_no_family_is_forgotten() -> None:
    assert sorted(MODELS) == supported_model_types()


@pytest.mark.parametrize("name", MODELS)
def test_the_tower_is_what_the_vision_config_describes(name: str) -> None:
    model = MODELS[name]()
    vision, adapter = model.config.vision_config, adapter_class(model.config)
    assert adapter is adapter_class(name)
    tower, blocks = adapter.tower(model), adapter.tower_blocks(model)
    assert tower.config is vision
    assert len(blocks) == (vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers)
    assert set(blocks.parameters()) < set(tower.parameters()) < set(model.parameters())
