"""Tensor parallelism (`tp_plan="auto"`): two processes with half of the LLM's weights each, really launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

from tests import tiny, tiny_qwen
from tests.runtime.tensor_parallel import GREEDY, inputs_for, pruned

ROOT = Path(__file__).parents[2]
FAMILIES = ("llava_onevision", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharded")
    for family in FAMILIES:
        model = tiny_qwen.model(family) if family in tiny_qwen.FAMILIES else tiny.llava_onevision()
        model.save_pretrained(path / family)
    return path


@pytest.fixture(scope="module")
def processes(folder: Path) -> list[dict[str, Any]]:
    """What each process found, by family."""
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.runtime.tensor_parallel"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command, str(folder), *FAMILIES],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_say_what_one_says(folder: Path, processes: list[dict[str, Any]], family: str) -> None:
    model, inputs = AutoModelForImageTextToText.from_pretrained(folder / family).eval(), inputs_for(family)
    expected = {
        "stock": model.generate(**tiny_qwen.stock(inputs), **GREEDY).tolist(),
        "uniform": pruned(model, inputs, "uniform", retention_ratio=0.3),
        "tango": pruned(model, inputs, "tango", retention_ratio=0.3, saliency="attn"),
        "cdpruner": pruned(model, inputs, "cdpruner", retention_ratio=0.3),
    }
    expected["all tokens"] = expected["stock"]
    for each in processes:
        if family != "qwen3_vl":  # transformers 5.17 has no plan for it, later ones shard its embeddings alone
            assert each[family]["share"] < 1
        assert {name: each[family][name] for name in expected} == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_methods_that_read_the_llms_attention(processes: list[dict[str, Any]], family: str) -> None:
    """Each process would see its own heads, choose other tokens than the other, and nobody would notice."""
    for each in processes:
        if family == "qwen3_vl":  # its plan leaves the layers whole
            assert each[family]["inside the LLM"] == ""
        else:
            assert "heads are spread over processes" in each[family]["inside the LLM"]
