"""What one prompt with a video costs from pixels to the first token, counted: operators and bytes.

The bounds lie a few percent above today's counts. Whoever lowers a count may lower its bound; whoever breaks one has
put work or memory where there was none. Waits are counted in `tests/runtime/test_waits.py`.
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
from tests.methods.test_tango_syncs import Spy

METHODS = {"none": MethodConfig(), "tango": MethodConfig(method="tango", options={"retention_ratio": 0.25})}
pytestmark = pytest.mark.usefixtures("unchecked_annotations")


class Cost(NamedTuple):
    operators: int
    peak_bytes: int


def cost(name: str, method: str, num_frames: int) -> Cost:
    """Of generating one token for a video of this many frames."""
    model, processor = random_model.build(name, device=torch.device("cpu"), dtype=torch.float32)
    inputs = dict(tango.prepare(processor, endtoend.synthetic_video(num_frames, size=112), "What?"))
    known = known_tensors(model, inputs, vars(vars(model).get("pooling_head", Counter())))
    with (
        tango.prune(model, METHODS[method].plan),
        torch.inference_mode(),
        LiveBytes(known) as memory,
        Spy() as spy,
    ):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return Cost(spy.num_launches, memory.peak)


BOUNDS = {  # at 16 frames
    ("llava-onevision-tiny", "none"): Cost(310, 56_000_000),
    ("llava-onevision-tiny", "tango"): Cost(740, 52_000_000),
    ("qwen2.5-vl-tiny", "none"): Cost(450, 22_000_000),
    ("qwen2.5-vl-tiny", "tango"): Cost(880, 14_000_000),
}


@pytest.mark.parametrize(("name", "method"), BOUNDS)
def test_a_prefill_costs_no_more_than_it_did(name: str, method: str) -> None:
    found = cost(name, method, 16)
    assert all(have <= bound for have, bound in zip(found, BOUNDS[name, method], strict=True)), found
    few = cost(name, method, 4)
    if method == "none":
        assert found.operators == few.operators
