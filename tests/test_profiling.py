"""Where and when stages are timed: on stand-ins for a GPU's streams and events, and on a clock that tests move on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tango.profiling import StageTimer


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
