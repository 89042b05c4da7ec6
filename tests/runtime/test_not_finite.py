"""NaN and infinity: refused by every method and by keeping all tokens, before the first token, with one read."""

from __future__ import annotations

import threading

import pytest
import torch

import tango
from tests import tiny, tiny_qwen

GREEDY = {"do_sample": False, "max_new_tokens": 2}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_every_method_refuses_by_name(value):
    model, inputs = tiny.llava_onevision(), tiny.one_video()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.bias[3] = value
    for method, options in (("uniform", {}), ("random", {}), ("fastv", {"layer": 1, "retention_ratio": 0.8}),
                            ("tango", {}), ("uniform", {"retention_ratio": 1.0}), ("visionzip", {})):  # fmt: skip
        with tango.prune(model, method, **options) as pruning:
            with pytest.raises(tango.TangoError, match="NaN or infinity"):
                model.generate(**inputs, **GREEDY)
            with pytest.raises(ValueError, match="NaN or infinity"):
                model(**inputs)
        assert pruning.stats is None


def test_one_frame_of_one_video_is_enough():
    model, inputs = tiny.llava_onevision(), tiny.three_videos()
    inputs["pixel_values_videos"][1, 2] = torch.nan
    pruning = tango.prune(model, "random", retention_ratio=0.5)
    with pruning, pytest.raises(tango.TangoError, match="features of video 1 contain NaN or infinity"):
        model.generate(**inputs, **GREEDY)


def test_features_for_deeper_layers_count():
    model = tiny_qwen.model("qwen3_vl")
    inputs = tiny_qwen.inputs("qwen3_vl", ("Look: ", tiny_qwen.WIDE, " What?"))
    with torch.no_grad():
        model.model.visual.deepstack_merger_list[0].linear_fc2.bias[0] = torch.nan
    with tango.prune(model, "uniform"), pytest.raises(tango.TangoError, match="features of video 0 contain NaN"):
        model.generate(**inputs, **GREEDY)


def test_the_check_is_one_read_after_the_prefill(monkeypatch):
    model, inputs = tiny.llava_onevision(), tiny.three_videos()
    passed = []
    model.model.language_model.register_forward_pre_hook(lambda *_: passed.append("prefill"))
    tolist = torch.Tensor.tolist

    def noted(tensor):
        passed.extend(["flags"] if tensor.dtype == torch.bool else [])
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    with tango.prune(model, "uniform"):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert passed == ["prefill", "flags"]


def test_no_token_of_a_refused_video_is_streamed():
    model, inputs = tiny.llava_onevision(), tiny.one_video()
    inputs["pixel_values_videos"][0, 1] = torch.nan
    streamed = []

    class Streamer:
        def put(self, value):
            streamed.append(value)

        def end(self):
            pass

    with tango.prune(model, "uniform"), pytest.raises(tango.TangoError, match="NaN or infinity"):
        model.generate(**inputs, **GREEDY, streamer=Streamer())
    assert len(streamed) <= 1  # the prompt


@pytest.mark.parametrize("method", ["tango", "tango-paper", "tango-release"])
def test_double_precision(method):
    model, inputs = tiny.llava_onevision(), tiny.one_video()
    kept = []
    for dtype in (torch.float32, torch.float64):
        with tango.prune(model.to(dtype), method, retention_ratio=0.3) as pruning:
            assert model.generate(**inputs, **GREEDY).shape[0] == 1
        kept.append(pruning.stats.tokens_after)
    assert kept[0] == kept[1]


def test_stats_are_those_of_the_threads_own_calls():
    model = tiny.llava_onevision()
    inputs = [tiny.one_video(), tiny.three_videos()]
    wanted, wrong = [96, 288], []
    barrier = threading.Barrier(2)

    def run(which: int) -> None:
        for _ in range(4):
            model.generate(**inputs[which], **GREEDY)
            barrier.wait(timeout=120)  # the other thread's call has come in between
            if pruning.stats.tokens_before != wanted[which]:
                wrong.append((which, pruning.stats.tokens_before))

    with tango.prune(model, "uniform") as pruning:
        threads = [threading.Thread(target=run, args=(which,)) for which in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pruning.stats is None  # this thread made no call
    assert wrong == []
