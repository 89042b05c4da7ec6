"""One of the processes that tests/runtime/test_tensor_parallel.py launches; the first writes down what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

import tango
from tests import tiny, tiny_qwen

GREEDY = {"do_sample": False, "max_new_tokens": 5}


def inputs_for(family: str) -> dict[str, Any]:
    if family in tiny_qwen.FAMILIES:
        return tiny_qwen.inputs(family, ("Look: ", tiny_qwen.TALL, " What?"), ("A ", tiny_qwen.TALL, "!"))
    return tiny.one_video()


def pruned(model: Any, inputs: dict[str, Any], method: str, **options: Any) -> list[list[int]]:
    with tango.prune(model, method, **options):
        return model.generate(**inputs, **GREEDY).tolist()


def found(folder: Path, family: str) -> dict[str, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
    inputs = inputs_for(family)
    stock = model.eval().generate(**tiny_qwen.stock(inputs), **GREEDY).tolist()
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(model.config)
    local = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters())
    try:
        refused = pruned(model, inputs, "fastv", layer=2, retention_ratio=0.8) and ""
    except tango.UnsupportedModelError as error:
        refused = str(error)
    return {
        "share": local / sum(p.numel() for p in whole.parameters()),
        "stock": stock,
        "all tokens": pruned(model, inputs, "uniform", retention_ratio=1.0),
        "uniform": pruned(model, inputs, "uniform", retention_ratio=0.3),
        "tango": pruned(model, inputs, "tango", retention_ratio=0.3, saliency="attn"),
        "cdpruner": pruned(model, inputs, "cdpruner", retention_ratio=0.3),
        "inside the LLM": refused,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    dist.init_process_group("gloo")
    result = {family: found(here / family, family) for family in sys.argv[2:]}
    everybodys: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybodys, result)
    if dist.get_rank() == 0:
        (here / "found.json").write_text(json.dumps(everybodys))
    dist.destroy_process_group()
