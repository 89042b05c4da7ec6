"""Train `tango-mini` from scratch: both stages, and the checkpoint at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tango.errors import TangoError
from tango.lab.training.language import encode_clips, scale_tokens, start_language, train_language
from tango.lab.training.recipe import Recipe
from tango.lab.training.vision import train_vision
from tango.mini.model import make_model, make_tokenizer


def train(
    output: Path,
    work: Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    workers: int = 1,
    every_s: float = 60.0,
    log: Callable[[str], None] = print,
) -> PreTrainedModel:
    """Train a model and write it to `output` as a transformers checkpoint in float16.

    The recipe alone decides the first weights, the clips and their pixels, and the order of the clips, also for a run
    that was interrupted and continued. Two runs differ only through rounding and what grows out of it. On a CPU, with
    the same number of threads and the same versions, we know of no difference; other processors, numbers of threads,
    versions and GPUs round differently.

    Args:
        work: folder of the training's state; a run that finds a state there continues from it.
        workers: processes that render clips beside the training; 0: none.
        every_s: seconds between two writings of the state.
    Returns:
        The trained model.
    Raises:
        TangoError: `output` exists, or `work` belongs to another recipe.
    """
    if output.exists():
        raise TangoError(f"{output} exists already; name another folder, or remove it first")
    claim(work, recipe)
    model = make_model(recipe.seed, **recipe.sizes).to(device)
    probes = train_vision(model, recipe, work, device=device, workers=workers, every_s=every_s, log=log)
    for module in (model.model.vision_tower, model.model.multi_modal_projector):
        module.requires_grad_(False)
    scale_tokens(model, recipe)
    start_language(model, probes, recipe.seed)
    encoded = encode_clips(model, recipe, work / "tokens", device=device, workers=workers, log=log)
    train_language(model, encoded, recipe, work, device=device, every_s=every_s, log=log)
    write_checkpoint(model, output)
    log(f"done: {output}")
    return model


def claim(work: Path, recipe: Any) -> None:
    """Note a recipe, a dataclass, in a work folder, or check that it equals the one noted there.

    Raises:
        TangoError: the folder belongs to another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    file, ours = work / "recipe.json", json.loads(json.dumps(asdict(recipe)))
    if not file.exists():
        file.write_text(json.dumps(ours, indent=1), encoding="utf-8")
        return
    theirs = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in ours if ours[name] != theirs.get(name))
    if changed:
        raise TangoError(
            f"{work} holds the training of another recipe (they differ in {', '.join(changed)}); name another folder"
        )


def write_checkpoint(model: PreTrainedModel, output: Path) -> None:
    """Write model, tokenizer and chat template; `output` appears only once it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        copy = type(model)(model.config)
        copy.load_state_dict(model.state_dict())
        copy.generation_config = model.generation_config
        copy.to(torch.float16).save_pretrained(partial)
        make_tokenizer().save_pretrained(partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
