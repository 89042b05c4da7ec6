"""The training recipe's numbers, the seeds of its clips, and the state from which an interrupted run continues."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from tango.errors import TangoError
from tango.files import writing

# First number of the seed of every training clip. Clips of the benchmark have another, so that no clip is in both sets.
TRAINING = 1
State: TypeAlias = dict[str, Any]  # number of steps done, and state dicts of modules and optimizer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome of training.

    The defaults are those of the published weights, whose schedule was changed during training (see the model card).
    """

    seed: int = 0
    vision_steps: int = 600
    vision_batch: int = 32  # frames
    vision_clips: int = 16  # rendered at a time; three quarters of them are crowded scenes
    vision_passes: int = 2  # over the frames of these clips, in a new order each time
    vision_lr: float = 2e-3
    clips: dict[int, int] = field(default_factory=lambda: {8: 640, 16: 448})  # number of frames -> number of clips
    language_steps: int = 1800
    language_tokens: int = 3072  # video tokens per step
    questions: int = 16  # per clip and step
    language_lr: float = 2e-3
    sizes: dict[str, int] = field(default_factory=dict)  # of the model, where they differ from its defaults


def vision_seed(recipe: Recipe, index: int) -> tuple[int, ...]:
    """Seed of a clip that trains the vision tower."""
    return (TRAINING, recipe.seed, 0, index)


def language_seed(recipe: Recipe, num_frames: int, index: int) -> tuple[int, ...]:
    """Seed of a clip that trains the language model."""
    return (TRAINING, recipe.seed, num_frames, index)


def make_optimizer(parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW without weight decay for vectors (biases, norms)."""
    given = list(parameters)
    groups = [
        {"params": [p for p in given if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in given if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float, flat: float) -> None:
    """Warm up for 50 steps, stay at the peak until the fraction `flat` of the stage, then decay along a cosine."""
    progress = max(0.0, (step / steps - flat) / (1 - flat))
    lr = peak * min(1.0, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = lr


def save_state(path: Path, state: State) -> None:
    """Write a state; a crash leaves the old file or the new one, both complete.

    Raises:
        WriteError: the disk is full or the file cannot be written; the old state is kept.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path, "the state before this one is kept; started again, the training goes on from there"):
        try:
            torch.save(state, partial)
            os.replace(partial, path)
        except RuntimeError as error:  # what torch raises for every failed write
            raise OSError(errno.ENOSPC, f"the file cannot be written, the disk may be full ({error})") from error
        finally:
            partial.unlink(missing_ok=True)


def load_state(path: Path) -> State | None:
    """Read a state; None if there is none yet.

    Raises:
        TangoError: the file holds no state.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TangoError(f"cannot read {path}: {error}; remove it to start this stage again") from error
