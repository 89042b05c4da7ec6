"""A stranger's package in both toolkits, launched as a user would: its methods, its saliency, its model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tango.quickstart import tiny_siglip
from tests import lmms_checkpoint
from tests.foreign import EXAMPLE, install_example, write_scorer
from tests.toolkits import lmms
from tests.toolkits.checkpoints import answer_with_letters, write_clips
from tests.toolkits.datasets import write_mlvu

ROOT = Path(__file__).parents[2]
KIT = ROOT / "VLMEvalKit"


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of the example's family, which answers A to D."""
    folder = tmp_path_factory.mktemp("coarse")
    model, tokenizer = lmms_checkpoint.twin(), lmms_checkpoint.tiny_tokenizer()
    answer_with_letters(model, tokenizer, seed=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_siglip(model).save_pretrained(folder / "siglip")
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "coarse_onevision", "architectures": ["CoarseOnevisionForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
