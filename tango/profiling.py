"""Stage timing that does not make a GPU wait, at a negligible cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch

# "between" is the time before the end of the prefill that no other stage covers: statistics, the set-up of `generate`.
# So the stages from "tower" to "prefill" add up to the time to the first token.
STAGES = ("read", "preprocess", "tower", "project", "prune", "splice", "between", "prefill", "decoding")

_Mark = float | torch.cuda.Event


class StageTimer:
    """Adds up the time spent in named stages.

    On CUDA the marks are events, so nothing waits for the device until `ms()` is called; elsewhere they are wall-clock
    times.

    Args:
        device: where the stages run. Events are recorded on the current stream of this device, even if another GPU is
            the current one.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self._device = torch.device(device)
        self._spans: list[tuple[str, _Mark, _Mark]] = []

    def mark(self) -> _Mark:
        """A point in time, on the device's own clock."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def add(self, stage: str, start: _Mark, end: _Mark | None = None) -> None:
        """Add the time from `start` to `end` (now, if not given) to `stage`."""
        self._spans.append((stage, start, self.mark() if end is None else end))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage `name`."""
        start = self.mark()
        try:
            yield
        finally:
            self.add(name, start)

    def ms(self) -> dict[str, float]:
        """Milliseconds per stage, in the order of `STAGES`; waits for the device.

        After a prefill, "between" is one of them: the time between the first mark and the end of the prefill that no
        other stage covers.
        """
        totals: dict[str, float] = {}
        for stage, start, end in [*self._spans, *self._gaps()]:
            totals[stage] = totals.get(stage, 0.0) + _ms_between(start, end)
        known = [stage for stage in STAGES if stage in totals]
        return {stage: totals[stage] for stage in [*known, *(s for s in totals if s not in STAGES)]}

    def _gaps(self) -> list[tuple[str, _Mark, _Mark]]:
        """The gaps between each stage and the next, up to the end of the prefill."""
        ends = [i for i, (stage, _, _) in enumerate(self._spans) if stage == "prefill"]
        before = self._spans[: ends[-1] + 1] if ends else []
        return [("between", end, start) for (_, _, end), (_, start, _) in pairwise(before)]


def _ms_between(start: _Mark, end: _Mark) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return 1e3 * (end - start)  # type: ignore[operator]  # both are: one timer, one clock
    end.synchronize()
    return start.elapsed_time(end)
