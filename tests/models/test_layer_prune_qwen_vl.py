"""Intra-LLM pruning on the Qwen-VL families, whose kept tokens retain three rows of positions with gaps."""

from __future__ import annotations

import pytest
import torch

import tango
from tango.methods.fastv_merge import FastvMergePruner
from tests import layer_oracle, tiny_qwen

INSIDE = FastvMergePruner(layer=2, retention_ratio=0.4)
ROWS = [("Look: ", tiny_qwen.WIDE, " What?"), ("And in this one here: ", tiny_qwen.TALL, " Tell me more.")]


def generate(model, inputs: dict, inside=INSIDE, **options) -> list[list[int]]:
    with tango.prune(model, "uniform", retention_ratio=0.6, layer_pruner=inside):
        output = model.generate(**inputs, do_sample=False, max_new_tokens=6, min_new_tokens=6, **options)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("family", [*tiny_qwen.FAMILIES, "qwen3_vl_moe"])
def test_batches_equal_rows_alone(family):
    model, batch = tiny_qwen.model(family), tiny_qwen.inputs(family, *ROWS)
    singles = [tiny_qwen.one_row(family, batch, ROWS, row) for row in range(len(ROWS))]
    alone = [generate(model, single)[0] for single in singles]
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert generate(model, batch, **options) == alone
    beams = [generate(model, single, num_beams=3)[0] for single in singles]
    assert generate(model, batch, num_beams=3) == beams
    assert generate(model, singles[0], prompt_lookup_num_tokens=3)[0] == alone[0]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])  # the oracle knows no deepstack
def test_states_equal_the_oracle(family):
    model = tiny_qwen.model(family)
    inputs = tiny_qwen.inputs(family, ROWS[0])
    with tango.prune(model, "uniform", retention_ratio=0.6, layer_pruner=INSIDE) as pruning, torch.no_grad():
        logits = model(**inputs).logits[0]
        short = pruning.encode(inputs["input_ids"], inputs["attention_mask"], inputs).short
    with torch.no_grad():
        embeds, positions = short.inputs_embeds[0], short.position_ids[1:]
        run = layer_oracle.run(model.model.language_model, embeds, short.is_video[0], INSIDE, positions=positions)
        torch.testing.assert_close(logits[short.kept[0]][run[1]], model.lm_head(run[0]), rtol=1e-4, atol=1e-4)


def test_layers_that_are_fed_with_features_are_refused():
    model, inputs = tiny_qwen.model("qwen3_vl"), tiny_qwen.inputs("qwen3_vl", ROWS[0])
    with pytest.raises(tango.UnsupportedModelError, match="feeds layers up to 2"):
        generate(model, inputs, FastvMergePruner(layer=1))
