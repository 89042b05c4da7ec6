"""What only Qwen2.5-VL has: windows in its tower, and positions that follow the clock."""

from __future__ import annotations

import warnings

import pytest
import torch

import tango
from tango.containers import Signal
from tango.models.base import adapter_class
from tango.models.qwen_tower import window_order
from tests import tiny_qwen
from tests.methods.test_tango_syncs import Spy
from tests.tiny_qwen import STILL, TALL, WIDE

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model():
    return tiny_qwen.model("qwen2_5_vl")


@pytest.mark.parametrize("grid", [(2, 3), (4, 3), (5, 7), (1, 1), (4, 4)])
def test_windows_are_ordered_as_in_the_stock_tower(grid):
    from transformers.vision_utils import get_vision_window_index

    H, W = grid
    thw = torch.tensor([[3, 2 * H, 2 * W]])
    index, _ = get_vision_window_index(thw, spatial_merge_size=2, window_size=56, patch_size=14)
    steps = torch.arange(3)[:, None] * H * W
    assert torch.equal(index, (steps + window_order(grid, 2)).flatten())


def test_windows_change_what_the_tower_sees(model):
    """Else the tests of saliency would prove nothing about the order."""
    assert not torch.equal(window_order((2, 3), 2), torch.arange(6))
    assert not torch.equal(window_order((4, 3), 2), torch.arange(12))
    other = tiny_qwen.model("qwen2_5_vl", fullatt_block_indexes=[0, 1, 2, 3])
    inputs = tiny_qwen.inputs("qwen2_5_vl", ("A ", WIDE, "?"))
    with torch.no_grad():
        a, b = (
            m.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"], return_dict=True)
            for m in (model, other)
        )
    assert not torch.allclose(a.pooler_output[0], b.pooler_output[0], atol=1e-2)


@pytest.mark.usefixtures("unchecked_annotations")
def test_undoing_the_windows_never_waits_for_the_device(model):
    """On tensors without contents, which go the way of those on a GPU."""
    T, H, W = 3, 4, 3
    vision = model.config.vision_config
    rows, head_dim = 4 * T * H * W, vision.hidden_size // vision.num_heads
    shapes = {**dict.fromkeys(("q", "k", "hidden"), vision.hidden_size), "cos": head_dim, "sin": head_dim}
    record = {name: torch.empty(rows, width, device="meta") for name, width in shapes.items()}
    with Spy() as spy:
        signals = adapter_class("qwen2_5_vl")(model)._signals(record, 0, (T, H, W), Signal.SALIENCY | Signal.KEYS)
    assert {name: x.shape[:2] for name, x in signals.items()} == {"saliency": (T, H * W), "keys": (T, H * W)}
    assert spy.uploads == spy.reads == []


def test_the_last_block_must_attend_to_whole_frames():
    windowed = tiny_qwen.model("qwen2_5_vl", fullatt_block_indexes=[0, 2])
    with pytest.raises(tango.UnsupportedModelError, match=r"only blocks \[0, 2\] of 4"):
        tango.prune(windowed, "tango")


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.7, 7.3])
def test_positions_follow_the_formula(model, seconds):
    """5 steps of 12 x 20 patches; the numbers themselves are in test_mrope."""
    before = tiny_qwen.prompt("qwen2_5_vl", "Hi")
    inputs = tiny_qwen.inputs("qwen2_5_vl", ("Hi", (5, 12, 20), "?"))
    inputs["second_per_grid_ts"] = torch.tensor([seconds])
    adapter = adapter_class("qwen2_5_vl")(model)
    positions = adapter.positions(inputs["input_ids"], inputs["attention_mask"], inputs)[:, 0]
    start = len(before) + 1
    expected = [start + int(i * seconds * 2) for i in range(5)]
    assert positions[0, start : start + 300 : 60].tolist() == expected
    assert positions[:, start + 300].tolist() == [max(expected[-1], start + 9) + 1] * 3
    inputs["video_timestamps_s"] = [[seconds * i / 2 for i in range(10)]]
    del inputs["second_per_grid_ts"]
    derived = adapter.positions(inputs["input_ids"], inputs["attention_mask"], inputs)[:, 0]
    assert torch.equal(derived, positions)


def test_stock_positions_differ_where_they_are_wrong(model):
    inputs = tiny_qwen.inputs("qwen2_5_vl", ("Hi", (5, 4, 6), " What?"))
    inputs["second_per_grid_ts"] = torch.tensor([3.7])
    logits = {}
    for positions in ("stock", "correct", None):
        with tango.prune(model, "tango", retention_ratio=1.0, positions=positions), torch.no_grad():
            logits[positions] = model(**inputs).logits
    with torch.no_grad():
        stock = model(**tiny_qwen.stock(inputs)).logits
    torch.testing.assert_close(logits["stock"], stock, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits[None], logits["correct"])
    assert (logits["correct"] - stock).abs().max() > 0.1


@pytest.mark.parametrize("positions", ["stock", "correct"])
def test_images_take_one_position_in_time(model, positions):
    inputs = tiny_qwen.inputs("qwen2_5_vl", ("See ", STILL, " and ", TALL, "?"))
    adapter = adapter_class("qwen2_5_vl")(model, positions=positions)
    rows = adapter.positions(inputs["input_ids"], inputs["attention_mask"], inputs)[:, 0]
    image = rows[:, inputs["mm_token_type_ids"][0] == 1]
    start = int(image[0, 0])
    assert image[0].tolist() == [start] * 8
    assert image[1].tolist() == [start + y for y in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert image[2].tolist() == [start + x for x in (0, 1, 2, 3)] * 2


def test_nothing_known_about_time_warns(model):
    inputs = tiny_qwen.inputs("qwen2_5_vl", ("Hi", WIDE, "?"))
    del inputs["second_per_grid_ts"], inputs["video_timestamps_s"]
    with tango.prune(model, "uniform"), pytest.warns(UserWarning, match="count as one second apart"):
        model.generate(**inputs, **GREEDY)
    inputs["second_per_grid_ts"] = torch.tensor([1.5])
    with tango.prune(model, "tango"), warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**inputs, **GREEDY)
