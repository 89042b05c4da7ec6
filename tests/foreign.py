"""Packages of strangers: the example, installed by pip, and small ones written on the spot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tango.toy import tiny_siglip

EXAMPLE = Path(__file__).parents[1] / "examples" / "tango-example"

# A method that keeps the first tokens.
FIRST = """
from dataclasses import dataclass
import torch, tango

@tango.register("first")
@dataclass(frozen=True, kw_only=True)
class FirstPruner(tango.Pruner):
    \"\"\"Keep the first tokens.\"\"\"

    def prune(self, tokens):
        x = tokens.features.flatten(0, 1)
        indices = torch.arange(max(1, round(self.retention_ratio * len(x))), device=x.device)
        return tango.PrunedTokens(features=x[indices], indices=indices)
"""


def install_example(site: Path) -> Path:
    """Have pip install the example into a folder, as from an index; nothing is fetched, and the source stays clean."""
    source = shutil.copytree(EXAMPLE, site.with_name("source"), ignore=shutil.ignore_patterns("*.egg-info", "build"))
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return site


def write_package(site: Path, name: str, source: str, group: str = "tango.methods") -> Path:
    """A module that an installed package announces under a group; the package has its name, with hyphens."""
    (site / f"{name}.py").write_text(source)
    about = site / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\nanything = {name}\n")
    return site


def write_coarse(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A LLaVA-OneVision as a checkpoint of the example's family, whose type decides how transformers calls weights."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_siglip(model).save_pretrained(folder / "siglip")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "coarse_onevision", "architectures": ["CoarseOnevisionForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_scorer(path: Path, dim: int, seed: int = 0) -> Path:
    """Weights of the example's learned method, for features of this width."""
    direction = torch.randn(dim, generator=torch.Generator().manual_seed(seed))
    save_file({"direction": direction}, path)
    return path
