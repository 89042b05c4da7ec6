"""First stage of training: tower, projector and pooling head learn to see, from labels for every token's position.

It uses single frames and no language. A linear probe on the pooled tokens predicts colour, pattern, letter, position
and the object's centre; another, on the pooling head's output, predicts what a frame contains. Only the first probe's
rows are used later: word embeddings start from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from tango.lab.training.recipe import Recipe, load_state, make_optimizer, save_state, set_lr, vision_seed
from tango.mini.files import as_read
from tango.mini.questions import COLOR_NAMES
from tango.mini.scenes import GRID, SIZE, cell_labels, draw_clip, draw_crowd, render_frame
from tango.mini.shapes import LETTERS, PATTERNS
from tango.video.sampling import sample_indices

CLASSES = (len(COLOR_NAMES), len(PATTERNS), len(LETTERS))
# Columns of the probe's output: colour, pattern and letter (each with "none" first), row, column, centre.
WIDTHS = (*(n + 1 for n in CLASSES), GRID, GRID, 2)
_EMPTY_WEIGHT = (0.15, 0.15, 0.03)  # of positions without colour, pattern, letter, of which there are many
_LOSS_WEIGHT = (1.0, 2.0, 1.0)
_FRAMES_PER_CLIP = 4


class _Chunks(Dataset[tuple[Tensor, Tensor]]):
    """Frames of some clips at a time; chunk i is always the same."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Frames (F, SIZE, SIZE, 3) in the colours that a video file would give them; labels (F, GRID, GRID, 5)."""
        pixels, labels = [], []
        for i in range(self.recipe.vision_clips):
            seed = vision_seed(self.recipe, index * self.recipe.vision_clips + i)
            if i % 4:
                clip = draw_crowd(seed, num_samples=_FRAMES_PER_CLIP)
                indices = sample_indices(clip.num_frames, _FRAMES_PER_CLIP)
            else:
                clip = draw_clip(seed)
                rng = np.random.default_rng((*seed, 1))
                indices = np.sort(rng.choice(clip.num_frames, _FRAMES_PER_CLIP, replace=False))
            for k in indices:
                frame, owner = render_frame(clip, int(k))
                pixels.append(frame)
                labels.append(cell_labels(clip, owner))
        frames = as_read(np.stack(pixels))
        return torch.from_numpy(frames), torch.from_numpy(np.stack(labels))


def _batches(recipe: Recipe, step: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches from this step on."""
    num_frames = recipe.vision_clips * _FRAMES_PER_CLIP
    per_pass = num_frames // recipe.vision_batch
    per_chunk = per_pass * recipe.vision_passes
    wanted = range(step // per_chunk, -(-recipe.vision_steps // per_chunk))
    for index, (pixels, labels) in zip(
        wanted, DataLoader(_Chunks(recipe), batch_size=None, sampler=wanted, num_workers=workers), strict=True
    ):
        for i in range(step - index * per_chunk, per_chunk):
            generator = torch.Generator().manual_seed(index * recipe.vision_passes + i // per_pass)
            rows = torch.randperm(num_frames, generator=generator).view(per_pass, -1)[i % per_pass]
            yield pixels[rows], labels[rows]
            step += 1


def to_pixel_values(frames: Tensor) -> Tensor:
    """Scale pixels as the processor does: (T, SIZE, SIZE, 3) uint8 -> (T, 3, SIZE, SIZE) in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def see(model: PreTrainedModel, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled visual tokens (T, GRID * GRID, D) and the pooling head's output (T, P)."""
    base = model.model
    with sdpa_kernel(SDPBackend.MATH):  # on a CPU, fused attention depends on the input's address in memory
        output = base.vision_tower(to_pixel_values(frames), output_hidden_states=True)
    return base.apply_pooling(base.multi_modal_projector(output.hidden_states[-1])), output.pooler_output


def make_probes(model: PreTrainedModel) -> nn.ModuleDict:
    """The two linear probes, which only the training uses."""
    widths = model.config.text_config.hidden_size, model.config.vision_config.hidden_size
    return nn.ModuleDict({"cells": nn.Linear(widths[0], sum(WIDTHS)), "frame": nn.Linear(widths[1], sum(CLASSES))})


def vision_loss(probes: nn.ModuleDict, tokens: Tensor, pooled: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """Loss of both probes, and the shares of colours, patterns, letters and frame contents that they predict right."""
    labels = labels.flatten(1, 2)  # (T, N, 5)
    logits = probes["cells"](F.rms_norm(tokens, tokens.shape[-1:]))
    *what, row, column, centre = logits.split(WIDTHS, dim=-1)
    loss, right, contents = logits.new_zeros(()), [], []
    for i, scores in enumerate(what):
        target = labels[..., i]
        weight = logits.new_tensor([_EMPTY_WEIGHT[i], *[1.0] * CLASSES[i]])
        loss = loss + _LOSS_WEIGHT[i] * F.cross_entropy(scores.flatten(0, 1), target.flatten(), weight)
        shown = target > 0
        right.append((scores.argmax(-1) == target)[shown].float().mean().item())
        contents.append(F.one_hot(target, CLASSES[i] + 1).amax(1)[:, 1:])
    position = torch.arange(GRID * GRID, device=tokens.device).expand(len(tokens), -1)  # (T, N), row-major
    for scores, target in ((row, position // GRID), (column, position % GRID)):
        loss = loss + 0.2 * F.cross_entropy(scores.flatten(0, 1), target.flatten())
    filled = labels[..., :3].sum(-1) > 0
    loss = loss + 2 * F.mse_loss(centre[filled], labels[filled][:, 3:].float() / (SIZE / 2) - 1)
    present = torch.cat(contents, dim=1).float()
    guess = probes["frame"](pooled)
    right.append((guess > 0)[present > 0].float().mean().item())
    return loss + 6 * F.binary_cross_entropy_with_logits(guess, present), right


def train_vision(
    model: PreTrainedModel,
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    workers: int,
    every_s: float,
    log: Callable[[str], None],
) -> nn.ModuleDict:
    """Train tower, projector and pooling head in place; continue from `folder/vision.pt` if it exists."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        probes = make_probes(model).to(device)
    modules = {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector, "probes": probes}
    optimizer = make_optimizer((p for m in modules.values() for p in m.parameters()), weight_decay=0.02)
    step, path = 0, folder / "vision.pt"
    if (state := load_state(path)) is not None:
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        for name, module in modules.items():
            module.load_state_dict(state[name])

    def save() -> None:
        weights = {name: module.state_dict() for name, module in modules.items()}
        save_state(path, {"step": step, "optimizer": optimizer.state_dict(), **weights})

    if step == recipe.vision_steps:
        return probes
    started, saved, first = time.monotonic(), time.monotonic(), step
    recent: list[list[float]] = []
    for pixels, labels in _batches(recipe, step, workers):
        set_lr(optimizer, step, recipe.vision_steps, recipe.vision_lr, flat=0.1)
        loss, right = vision_loss(probes, *see(model, pixels.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        step += 1
        recent.append(right)
        if step % 50 == 0:
            speed = (step - first) * recipe.vision_batch / (time.monotonic() - started)
            shares = zip(("color", "pattern", "letter", "frame"), np.nanmean(recent, axis=0), strict=True)
            known = " ".join(f"{name} {share:.3f}" for name, share in shares)
            log(f"vision {step} loss {loss.item():.3f} {known} {speed:.0f}/s")
            recent = []
        if step == recipe.vision_steps:
            break
        if time.monotonic() - saved > every_s:
            save()
            saved = time.monotonic()
    save()
    return probes
