"""What every adapter says of its family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tango.models import adapter_class
from tests.families import Video, all_families

MODELS: dict[str, Callable[[], Any]] = {name: family.model for name, family in all_families().items()}


def inputs_of(name: str) -> dict[str, Any]:
    """One prompt with one video, for any family."""
    return all_families()[name].inputs(("Look: ", Video(6, 1), " What?"))


@pytest.mark.parametrize("name", MODELS)
def test_the_tower_is_what_the_vision_config_describes(name: str) -> None:
    model = MODELS[name]()
    vision, adapter = model.config.vision_config, adapter_class(model.config)
    assert adapter is adapter_class(name)
    tower, blocks = adapter.tower(model), adapter.tower_blocks(model)
    assert tower.config is vision
    depth = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or vision.model_args["depth"]
    assert len(blocks) == depth
    assert set(blocks.parameters()) < set(tower.parameters()) < set(model.parameters())
