"""Second stage of training: the language model learns to answer from the tokens of the frozen tower.

Its word embeddings start as the directions that the first stage's probe learned for these words, and its attention
starts by matching equal tokens and copying what it finds; both save most of the training. The model never sees pruned
input. But its input varies in everything that pruning changes, so that it learns no fixed spacing: the number of
frames, the pooled grid (5 x 5 and 4 x 4 tokens a frame besides 7 x 7), and the positions, which may be closer together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from tango.files import write_bytes
from tango.lab.training.packed import packed_forward
from tango.lab.training.recipe import Recipe, language_seed, load_state, make_optimizer, save_state, set_lr
from tango.lab.training.vision import WIDTHS, see
from tango.mini.files import as_read
from tango.mini.model import IDS, NUM_FRAMES
from tango.mini.questions import COLOR_NAMES, KINDS, Question, ask
from tango.mini.scenes import DIRECTIONS, GRID, Clip, draw_clip, render_frame
from tango.mini.shapes import LETTERS, PATTERNS
from tango.video.sampling import sample_indices

LENGTH = 6  # tokens of the longest question with its answer
_REPEATED = ("color", "pattern", "where", "start", "end", "motion")  # kinds of questions about one object among several
_CLIPS_PER_FILE = 32
_TOKEN_RMS = 0.27


def training_clip(recipe: Recipe, num_frames: int, index: int) -> Clip:
    """A clip that trains the language model, of which it sees `num_frames` frames."""
    num_scenes = (3, 4) if num_frames >= NUM_FRAMES else (3,)
    return draw_clip(language_seed(recipe, num_frames, index), num_samples=num_frames, num_scenes=num_scenes)


class _Frames(Dataset[Tensor]):
    """The sampled frames of training clips, with the colours that a video file would give them: (T, SIZE, SIZE, 3)."""

    def __init__(self, recipe: Recipe, num_frames: int):
        self.recipe, self.num_frames = recipe, num_frames

    def __getitem__(self, index: int) -> Tensor:
        clip = training_clip(self.recipe, self.num_frames, index)
        indices = sample_indices(clip.num_frames, self.num_frames)
        frames = np.stack([render_frame(clip, int(k))[0] for k in indices])
        return torch.from_numpy(as_read(frames))


def encode_clips(
    model: PreTrainedModel, recipe: Recipe, folder: Path, *, device: str, workers: int, log: Callable[[str], None]
) -> dict[int, Tensor]:
    """Run the tower once over all training clips; files of tokens that exist already are used as they are.

    Returns:
        For every number of frames T, tokens (clips, T * N, D) in float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoded: dict[int, Tensor] = {}
    for num_frames, num_clips in recipe.clips.items():
        parts = []
        for first in range(0, num_clips, _CLIPS_PER_FILE):
            file = folder / f"{num_frames:02d}_{first:05d}.safetensors"
            if not file.exists():
                wanted = range(first, min(first + _CLIPS_PER_FILE, num_clips))
                frames = DataLoader(_Frames(recipe, num_frames), batch_size=None, sampler=wanted, num_workers=workers)
                with torch.no_grad():
                    tokens = torch.stack([see(model, f.to(device))[0].flatten(0, 1).cpu().half() for f in frames])
                write_bytes(file, save({"tokens": tokens}))
                log(f"encode {num_frames} frames: {wanted[-1] + 1} of {num_clips} clips")
            parts.append(load_file(file)["tokens"])
        encoded[num_frames] = torch.cat(parts)
    return encoded


def scale_tokens(model: PreTrainedModel, recipe: Recipe) -> None:
    """Scale the projector's last layer so that visual tokens are as large as word embeddings."""
    frames = torch.cat([_Frames(recipe, NUM_FRAMES)[(1 << 20) + i] for i in range(4)])  # nothing else uses them
    last = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        factor = _TOKEN_RMS / see(model, frames.to(last.weight.device))[0].square().mean().sqrt()
        last.weight.mul_(factor)
        last.bias.mul_(factor)


@torch.no_grad()
def start_language(model: PreTrainedModel, probes: nn.ModuleDict, seed: int) -> None:
    """Set the language model's first weights: attention matches and copies, word embeddings come from the probe."""
    decoder = model.model.language_model
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: Tensor, deviation: float) -> None:
        weight.copy_(deviation * torch.randn(weight.shape, generator=generator))

    for layer in decoder.layers:
        for name, weight in layer.named_parameters():
            if weight.dim() == 2:
                draw(weight, 0.045 if "down_proj" in name or "o_proj" in name else 0.08)
        a = layer.self_attn
        draw(a.k_proj.weight, 0.09)
        a.q_proj.weight.copy_(_per_query_head(a, a.k_proj.weight))
        a.o_proj.weight.copy_(0.4 * _per_query_head(a, a.v_proj.weight).T)
    inputs: Tensor = decoder.embed_tokens.weight
    outputs: Tensor = model.lm_head.weight
    draw(inputs, 0.27)
    draw(outputs, 0.02)
    draw(model.model.image_newline, 0.27)
    answers, keys = _meanings(probes.get_parameter("cells.weight").detach().cpu())
    for word, direction in {**answers, **keys}.items():
        unit = (direction / direction.norm()).to(inputs)
        inputs[IDS[word]] = 3 * unit + (0.5 * inputs[IDS[word]] if word in keys else 0)
        if word in answers:
            outputs[IDS[word]] = 0.7 * unit


def _per_query_head(attention: Qwen2Attention, weight: Tensor) -> Tensor:
    """Rows of the key or value projection, repeated for the query heads that share them."""
    groups = attention.q_proj.out_features // attention.k_proj.out_features
    return weight.unflatten(0, (-1, attention.head_dim)).repeat_interleave(groups, dim=0).flatten(0, 1)


def _meanings(probe: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Directions in token space: of words that can be answers, and of words that say what to look for."""
    color, pattern, letter, row, column, _ = (part - part.mean(0) for part in probe.split(WIDTHS))
    half = GRID // 2
    down = row[-half:].mean(0) - row[:half].mean(0)
    right = column[-half:].mean(0) - column[:half].mean(0)
    answers = dict(zip((*COLOR_NAMES, *PATTERNS, *LETTERS), (*color[1:], *pattern[1:], *letter[1:]), strict=True))
    answers |= {"topleft": -down - right, "topright": right - down, "bottomleft": down - right}
    answers |= {"bottomright": down + right}
    answers |= {name: y * down + x * right for name, (y, x) in DIRECTIONS.items()}
    return answers, {"letter": -letter[0], **dict.fromkeys(("color", "objects", "first", "last"), -color[0])}


def _questions(clip: Clip, count: int, rng: np.random.Generator) -> list[Question]:
    """One question of every kind, then more of those about one object among several."""
    wanted = [*KINDS, *rng.choice(_REPEATED, 3 * count)]
    found = (question for kind in wanted if (question := ask(clip, str(kind), rng)) is not None)
    return [next(found) for _ in range(count)]


def _pack(questions: list[list[Question]]) -> tuple[Tensor, Tensor]:
    """Token ids (B, Q, LENGTH) of every question with its answer, and the position (B, Q) of each question's last."""
    ids = torch.full((len(questions), len(questions[0]), LENGTH), IDS["<pad>"])
    ends = torch.empty(ids.shape[:2], dtype=torch.long)
    for b, of_clip in enumerate(questions):
        for q, question in enumerate(of_clip):
            words = [*question.text.split(), question.answer]
            ids[b, q, : len(words)] = torch.tensor([IDS[word] for word in words])
            ends[b, q] = len(words) - 2
    return ids, ends


def _resize(tokens: Tensor, num_frames: int, side: int) -> Tensor:
    """Resize every frame's tokens bilinearly, as the model pools its own grid: (B, T GRID^2, D) -> (B, T side^2, D)."""
    if side == GRID:
        return tokens
    maps = tokens.unflatten(1, (num_frames, GRID, GRID)).flatten(0, 1).permute(0, 3, 1, 2)
    small = F.interpolate(maps, size=(side, side), mode="bilinear")
    return small.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames)).flatten(1, 3)


def prefix_of(model: PreTrainedModel, tokens: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and positions of a prompt up to the question: start token, video, newline.

    Args:
        stretch: (B,) distance between neighbouring positions; 1 at inference, less in some training steps.
    """
    B, M, _ = tokens.shape
    base = model.model
    start = base.language_model.embed_tokens.weight[IDS["<|im_start|>"]].expand(B, 1, -1)
    prefix = torch.cat([start, tokens, base.image_newline.expand(B, 1, -1)], dim=1)
    return prefix, torch.arange(M + 2, device=tokens.device) * stretch[:, None]


def _plan(recipe: Recipe, step: int, rng: np.random.Generator) -> tuple[int, int, float]:
    """Number of frames, side of the token grid and smallest stretch of a step: short and plain steps come first."""
    progress, short, long = step / recipe.language_steps, min(recipe.clips), max(recipe.clips)
    if progress < 0.25:
        return short, int(rng.choice([5, 5, GRID])), 1.0
    if progress < 0.6:
        return int(rng.choice([short, long])), int(rng.choice([4, 5, 5, GRID])), 0.1
    return int(rng.choice([short, long, long, long])), int(rng.choice([4, 5, GRID, GRID])), 0.1


def language_loss(
    model: PreTrainedModel, tokens: Tensor, stretch: Tensor, questions: list[list[Question]]
) -> tuple[Tensor, list[tuple[str, bool]]]:
    """Cross-entropy of the answers and of the end after them; and of every question its kind, and if it was right."""
    ids, ends = (t.to(tokens.device) for t in _pack(questions))
    prefix, positions = prefix_of(model, tokens, stretch)
    hidden = packed_forward(model.model.language_model, prefix, positions, model.model.language_model.embed_tokens(ids))
    at = torch.stack([ends, ends + 1], dim=2)  # the answer is predicted at the question's end, the end at the answer
    logits = model.lm_head(hidden.gather(2, at[..., None].expand(-1, -1, -1, hidden.shape[-1])))
    answer = ids.gather(2, at[..., 1:])
    target = torch.cat([answer, torch.full_like(answer, IDS["<|im_end|>"])], dim=2)
    losses = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(-1, 2)
    right = (logits[:, :, 0].argmax(-1) == answer[..., 0]).flatten().tolist()
    kinds = [question.kind for of_clip in questions for question in of_clip]
    return losses[:, 0].mean() + 0.1 * losses[:, 1].mean(), list(zip(kinds, right, strict=True))


def train_language(
    model: PreTrainedModel,
    encoded: dict[int, Tensor],
    recipe: Recipe,
    folder: Path,
    *,
    device: str,
    every_s: float,
    log: Callable[[str], None],
) -> None:
    """Train the language model in place; continue from `folder/language.pt` if it exists."""
    modules = {"decoder": model.model.language_model, "head": model.lm_head}
    newline = model.model.image_newline
    optimizer = make_optimizer([newline, *(p for m in modules.values() for p in m.parameters())], weight_decay=0.01)
    step, path = 0, folder / "language.pt"
    if (state := load_state(path)) is not None:
        step = state["step"]
        optimizer.load_state_dict(state["optimizer"])
        newline.data.copy_(state["newline"])
        for name, module in modules.items():
            module.load_state_dict(state[name])

    def save() -> None:
        weights = {name: module.state_dict() for name, module in modules.items()}
        state = {"step": step, "optimizer": optimizer.state_dict(), "newline": newline.detach(), **weights}
        save_state(path, state)

    clips: dict[tuple[int, int], Clip] = {}
    saved, answers = time.monotonic(), list[tuple[str, bool]]()
    while step < recipe.language_steps:
        set_lr(optimizer, step, recipe.language_steps, recipe.language_lr, flat=0.35)
        rng = np.random.default_rng((recipe.seed, step))
        num_frames, side, least = _plan(recipe, step, rng)
        count = max(1, recipe.language_tokens // (num_frames * side * side))
        rows = rng.choice(recipe.clips[num_frames], min(count, recipe.clips[num_frames]), replace=False)
        for row in rows.tolist():
            if (num_frames, row) not in clips:
                clips[num_frames, row] = training_clip(recipe, num_frames, row)
        questions = [_questions(clips[num_frames, row], recipe.questions, rng) for row in rows.tolist()]
        stretch = np.where(rng.random(len(rows)) < 0.5, 1.0, np.exp(rng.uniform(np.log(least), 0, len(rows))))
        tokens = _resize(encoded[num_frames][torch.from_numpy(rows)].to(device).float(), num_frames, side)
        loss, right = language_loss(model, tokens, torch.from_numpy(stretch).float().to(device), questions)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        step += 1
        answers += right
        if step % 50 == 0:
            log(f"language {step} loss {loss.item():.3f} {_summary(answers)}")
            answers = []
        if time.monotonic() - saved > every_s:
            save()
            saved = time.monotonic()
    save()


def _summary(answers: list[tuple[str, bool]]) -> str:
    """Percentages of right answers, over all questions and by kind."""
    shares = {kind: [right for k, right in answers if k == kind] for kind in KINDS}
    overall = f"all {100 * np.mean([right for _, right in answers]):.0f}"
    return " ".join([overall, *(f"{kind} {100 * np.mean(right):.0f}" for kind, right in shares.items() if right)])
