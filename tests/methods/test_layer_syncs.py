"""How often methods at several layers make the host wait for the device."""

from __future__ import annotations

import pytest
import torch

from tango.methods import build_layer_pruner
from tests.layer_tokens import random_prompt
from tests.methods.test_tango_syncs import Spy, counted_methods

# Layer -> reads there. At layer 1 of framefusion nothing is alike, so layer 2 cuts, and later ones let pass.
CASES = {
    "pyramiddrop": {7: 0, 14: 0, 21: 0},
    "sparsevlm": {3: 0, 7: 0, 16: 0},
    "prunevid-select": {11: 1},
    "flashvid-select": {20: 0},
    "framefusion": {1: 1, 2: 0, 3: 0},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("unchecked_annotations")
def test_reads_of_the_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pruner = build_layer_pruner(name)
    for layer, reads in CASES[name].items():
        tokens = random_prompt(frames=12, cells=20, text=30, layer=layer, dtype=torch.float16)
        with counted_methods(monkeypatch) as calls, Spy() as spy:
            pruner.prune(tokens)
        assert len(spy.reads) == reads, spy.reads
        assert sum(calls.values()) in (0, reads)  # `nonzero` waits without handing a value over
        assert spy.uploads == []


@pytest.mark.parametrize(("order", "reads"), [("set", {"tolist": 1}), ("norm", {})])
@pytest.mark.usefixtures("unchecked_annotations")
def test_only_the_order_of_a_set_is_made_on_the_host(
    monkeypatch: pytest.MonkeyPatch, order: str, reads: dict[str, int]
) -> None:
    pruner = build_layer_pruner("dart", pivot_order=order)
    tokens = random_prompt(frames=12, cells=20, text=30, dtype=torch.float16)
    with counted_methods(monkeypatch) as calls, Spy() as spy:
        pruner.prune(tokens)
    assert calls == reads
    assert spy.reads == spy.uploads == []


@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm", "flashvid-select"])
@pytest.mark.usefixtures("unchecked_annotations")
def test_counts_are_known_without_values(name: str) -> None:
    """Tensors without contents: whatever would read one fails."""
    pruner = build_layer_pruner(name)
    tokens = random_prompt(frames=12, cells=20, text=30, layer=pruner.layer)
    fields = {f: getattr(tokens, f) for f in tokens.__slots__}
    meta = type(tokens)(**{f: v.to("meta") if isinstance(v, torch.Tensor) else v for f, v in fields.items()})
    states, kept = pruner.prune(meta)
    assert kept.device.type == "meta"
    assert len(states) == len(kept) == len(pruner.prune(tokens)[1]) < 240
