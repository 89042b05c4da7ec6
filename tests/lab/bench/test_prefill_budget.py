"""What one prompt with a video costs from pixels to the first token, counted: operators, reads by the host, bytes.

The bounds lie a few percent above today's counts. Whoever lowers a count may lower its bound; whoever breaks one has
put work, a wait for the device, or memory where there was none.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
import torch

import tango
from tango.evaluation import MethodConfig
from tango.lab.bench import endtoend, random_model
from tests.live_bytes import LiveBytes, known_tensors
from tests.methods.test_tango_syncs import Spy, counted_methods

METHODS = {"none": MethodConfig(), "tango": MethodConfig(method="tango", options={"retention_ratio": 0.25})}
pytestmark = pytest.mark.usefixtures("unchecked_annotations")


class Cost(NamedTuple):
    operators: int
    reads: int  # by the host; on a GPU it waits at each that is of the device's memory
    peak_bytes: int


def cost(monkeypatch: pytest.MonkeyPatch, name: str, method: str, num_frames: int) -> Cost:
    """Of generating one token for a video of this many frames."""
    model, processor = random_model.build(name, device=torch.device("cpu"), dtype=torch.float32)
    inputs = dict(tango.prepare(processor, endtoend.synthetic_video(num_frames, size=112), "What?"))
    known = known_tensors(model, inputs, vars(vars(model).get("pooling_head", Counter())))
    with (
        tango.prune(model, METHODS[method].plan),
        counted_methods(monkeypatch) as reads,
        torch.inference_mode(),
        LiveBytes(known) as memory,
        Spy() as spy,
    ):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return Cost(spy.num_launches, sum(reads.values()), memory.peak)


# At 16 frames. Reads: LLaVA's are 2 for the splice, 2 for the statistics, up to 2 for the method, the others stock.
BOUNDS = {
    ("llava-onevision-tiny", "none"): Cost(300, 12, 54_000_000),
    ("llava-onevision-tiny", "tango"): Cost(1420, 15, 52_000_000),
    ("qwen2.5-vl-tiny", "none"): Cost(500, 38, 21_000_000),
    ("qwen2.5-vl-tiny", "tango"): Cost(1780, 41, 14_000_000),
}


@pytest.mark.parametrize(("name", "method"), BOUNDS)
def test_a_prefill_costs_no_more_than_it_did(monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    found = cost(monkeypatch, name, method, 16)
    assert all(have <= bound for have, bound in zip(found, BOUNDS[name, method], strict=True)), found
    few = cost(monkeypatch, name, method, 4)
    assert found.reads == few.reads
    if method == "none":  # Qwen's stock tower attends step by step; its blocks are two
        per_frame = 0 if name.startswith("llava") else 5
        assert found.operators <= few.operators + per_frame * 12
