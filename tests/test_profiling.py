"""Where and when stages are timed: on stand-ins for a GPU's streams and events, and on a clock that tests move on."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tango import profiling
from tango.profiling import STAGES, StageTimer


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Two GPUs, cuda:0 current: which events lie on the stream of each. An event's time is its number there."""
    lying: dict[str, list[Any]] = {"cuda:0": [], "cuda:1": []}

    class Event:
        def __init__(self, *, enable_timing: bool):
            assert enable_timing

        def record(self, stream: str = "cuda:0") -> None:
            lying[stream].append(self)
            self.stream, self.time = stream, float(len(lying[stream]))

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Any) -> float:
            assert self.stream == end.stream
            return end.time - self.time

    def current_stream(device: torch.device | None = None) -> str:
        return "cuda:0" if device is None or device.index is None else str(device)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    return lying


@pytest.mark.parametrize(("device", "used"), [("cuda:1", "cuda:1"), ("cuda:0", "cuda:0"), ("cuda", "cuda:0")])
def test_events_lie_on_the_device_that_is_timed(streams: dict[str, list[Any]], device: str, used: str) -> None:
    timer = StageTimer(torch.device(device))
    with timer.stage("tower"):
        pass
    timer.add("prune", timer.mark())
    assert {name: len(events) for name, events in streams.items()} == {"cuda:0": 0, "cuda:1": 0, used: 4}
    assert timer.ms() == {"tower": 1, "prune": 1}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves on by a second whenever it is read."""
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=map(float, itertools.count()).__next__))


def timed(timer: StageTimer, *stages: str) -> dict[str, float]:
    """Every stage takes a second, and so does what lies between two of them."""
    for stage in stages:
        with timer.stage(stage):
            pass
    return {stage: ms / 1000 for stage, ms in timer.ms().items()}


@pytest.mark.usefixtures("clock")
class TestBetween:
    def test_nothing_is_left_out_up_to_the_end_of_the_prefill(self) -> None:
        timer = StageTimer()
        seconds = timed(timer, "tower", "prune", "tower", "prune", "splice", "prefill", "decoding", "decoding")
        assert seconds == {"tower": 2, "prune": 2, "splice": 1, "between": 5, "prefill": 1, "decoding": 2}
        assert list(seconds) == [stage for stage in STAGES if stage in seconds]

    def test_a_prefill_in_pieces_ends_with_the_last(self) -> None:
        assert timed(StageTimer(), "splice", "prefill", "prefill", "decoding") == {
            "splice": 1, "between": 2, "prefill": 2, "decoding": 1
        }  # fmt: skip

    def test_there_is_none_without_a_prefill(self) -> None:
        assert timed(StageTimer(), "read", "preprocess") == {"read": 1, "preprocess": 1}


def test_time_between_stages_is_taken_from_the_gpus_own_events(streams: dict[str, list[Any]]) -> None:
    assert timed(StageTimer("cuda:1"), "tower", "prefill") == {"tower": 1e-3, "between": 1e-3, "prefill": 1e-3}
    assert streams["cuda:0"] == []
