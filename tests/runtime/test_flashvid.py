"""FlashVID in whole models, both of its steps: what enters the LLM, what is left late in it, and what is answered."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tango
from tests import tiny, tiny_qwen
from tests.models.test_llava_video import one_video as llava_video_inputs
from tests.runtime.test_layer_methods import row_alone
from tests.runtime.test_pruning import GREEDY, new_tokens, one_video, three_videos

METHODS = pytest.mark.parametrize("method", ["flashvid", "flashvid-release"])
SELECT = tango.FlashVidSelectPruner(layer=2)
ROWS = [("Look: ", tiny_qwen.WIDE, " What?"), ("And in this one here: ", (5, 8, 6), " Tell me more.")]


def generate(model: Any, inputs: dict[str, Any], method: str, **decoding: Any) -> tuple[list[list[int]], Any]:
    options = {"mean_retention_ratio": 0.35, "layer_pruner": SELECT, "min_segments": 2}
    with tango.prune(model, method, **options) as pruning:
        output = model.generate(**inputs, **GREEDY, **decoding)
    return new_tokens(model, inputs, output), pruning.stats


def check_counts(stats: Any, layers: int, prompts: int = 1) -> None:
    """Each frame keeps its ceil, or one more; of a prompt, newlines included, ceil(0.3 M) are left at layer 2."""
    ratio = 0.35 * layers / (2 + 0.3 * (layers - 2))
    for video in stats.videos:
        budget = video.frames * math.ceil(video.grid[0] * video.grid[1] * ratio)
        assert budget <= video.tokens_after <= budget + video.frames
        assert video.tokens_after < video.tokens_before
    entered, left = stats.layer.tokens
    assert entered == stats.entering_after
    assert 0 <= left - 0.3 * entered < prompts


@METHODS
@pytest.mark.parametrize("decoding", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_a_padded_batch_equals_rows_alone(method: str, decoding: dict[str, Any]) -> None:
    model, inputs = tiny.llava_onevision(), three_videos()
    rows, stats = generate(model, inputs, method, **decoding)
    check_counts(stats, layers=4, prompts=2)
    alone = [row_alone(inputs, 0, slice(0, 2)), row_alone(inputs, 1, slice(2, 3))]
    assert rows == [generate(model, single, method)[0][0] for single in alone]


@METHODS
def test_llava_video(method: str) -> None:
    model = tiny.llava_video()
    rows, stats = generate(model, llava_video_inputs(model), method)
    assert all(rows)
    check_counts(stats, layers=model.config.get_text_config().num_hidden_layers)


@METHODS
@pytest.mark.parametrize("family", tiny_qwen.FAMILIES)
def test_qwen_models(method: str, family: str) -> None:
    model, batch = tiny_qwen.model(family), tiny_qwen.inputs(family, *ROWS)
    rows, stats = generate(model, batch, method)
    check_counts(stats, layers=3, prompts=2)
    assert rows == [generate(model, tiny_qwen.one_row(family, batch, ROWS, row), method)[0][0] for row in range(2)]


def test_the_released_method_answers_from_other_rows() -> None:
    """A calm video is averaged along trees, whose rows are longer there."""
    model, inputs = tiny.llava_onevision(), one_video()
    pixels = inputs["pixel_values_videos"]
    calm = pixels[:, :1] + 0.01 * pixels
    logits = []
    for method in ("flashvid", "flashvid-release"):
        with tango.prune(model, method, retention_ratio=0.5, min_segments=1), torch.no_grad():
            logits.append(model(**{**inputs, "pixel_values_videos": calm}).logits)
    assert logits[0].shape == logits[1].shape
    assert float((logits[0] - logits[1]).abs().max()) > 1e-3
